"""A model's vocabulary: text to tokens, tokens to bytes."""

from __future__ import annotations

import ctypes
import functools
from array import array
from typing import TYPE_CHECKING

from runner_llamacpp.native import lib

if TYPE_CHECKING:
    from runner_llamacpp.native import NativeModel

__all__ = ["Vocabulary"]

#: Text longer than this many bytes per token of context is counted by its beginning only.
_LONGEST_TOKEN_BYTES = 32
_MIN_COUNTED_BYTES = 2**20


class Vocabulary:
    """Token ids are ``int`` in ``[0, n_vocab)``. Valid as long as its model."""

    def __init__(self, model: NativeModel) -> None:
        self._vocab = lib.llama_model_get_vocab(model.pointer)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        self.bos = int(lib.llama_vocab_bos(self._vocab))
        self.eos = int(lib.llama_vocab_eos(self._vocab))
        #: Whether the model wants its bos token in front of every text.
        self.add_bos = bool(lib.llama_vocab_get_add_bos(self._vocab))
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._buffer = ctypes.create_string_buffer(256)

    def tokenise(self, text: str, *, add_special: bool, n_enough: int | None = None) -> array[int]:
        """The tokens of a text, in which the names of special tokens are those tokens.

        :param add_special: put what the model wants around a text (``[CLS]``, bos …).
        :param n_enough: whoever asks refuses this many tokens anyway: of text that is certain to
            have more, only a beginning that has as many is tokenised, so that a body of megabytes
            does not hold up other requests for seconds.
        """
        data = text.encode("utf-8", "replace")
        if n_enough is not None:
            n_head = max(n_enough * _LONGEST_TOKEN_BYTES, _MIN_COUNTED_BYTES)
            if len(data) > n_head:
                head = self._tokenise(data[:n_head], add_special=add_special)
                if len(head) > n_enough:
                    return head
        return self._tokenise(data, add_special=add_special)

    def _tokenise(self, data: bytes, *, add_special: bool) -> array[int]:
        size = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * size)()
            n = lib.llama_tokenize(self._vocab, data, len(data), tokens, size, add_special, True)
            if n >= 0:
                return array("i", memoryview(tokens).cast("B").cast("i")[:n])
            size = -n

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for.

        :param special: spell control tokens (``<|im_end|>``); else they are nothing.
        """
        key = (token, special)
        piece = self._pieces.get(key)
        if piece is None:
            piece = self._pieces[key] = self._read_piece(token, special=special)
        return piece

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        while True:
            size = len(self._buffer)
            n = lib.llama_token_to_piece(self._vocab, token, self._buffer, size, 0, special)
            if n >= 0:
                return self._buffer.raw[:n]
            self._buffer = ctypes.create_string_buffer(-n)

    def spelling(self, token: int) -> str:
        """A special token's text, for chat templates; empty for a token that does not exist."""
        return self.piece(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    @functools.cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """All tokens that end an answer."""
        return tuple(token for token in range(self.n_vocab) if self.is_end(token))
