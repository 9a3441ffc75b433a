"""The tokens given to llama.cpp in one call."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np

from runner_llamacpp.native import lib, set_fields

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence

__all__ = ["Batch"]


class Batch:
    """A ``llama_batch`` over numpy arrays of our own, so that filling it costs microseconds.

    Each token belongs to one sequence. Arrays, all of length ``size``:
    ``token i32`` · ``position i32, 0-based in its sequence`` · ``sequence i32`` ·
    ``output i8, 1 = make logits (or an embedding) for it``.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.n_tokens = 0
        self._token = np.zeros(size, np.int32)
        self._position = np.zeros(size, np.int32)
        self._sequence = np.zeros(size, np.int32)
        self._output = np.zeros(size, np.int8)
        self._n_sequences = np.ones(size, np.int32)
        #: seq_id is a pointer per token to its list of sequences: here, to one element each.
        first = self._sequence.ctypes.data
        self._sequence_pointers = (first + 4 * np.arange(size)).astype(np.uint64)
        self.native = lib.llama_batch()
        c_int_p = ctypes.POINTER(ctypes.c_int32)
        set_fields(
            self.native,
            token=ctypes.cast(self._token.ctypes.data, c_int_p),
            pos=ctypes.cast(self._position.ctypes.data, c_int_p),
            n_seq_id=ctypes.cast(self._n_sequences.ctypes.data, c_int_p),
            seq_id=ctypes.cast(self._sequence_pointers.ctypes.data, ctypes.POINTER(c_int_p)),
            logits=ctypes.cast(self._output.ctypes.data, ctypes.POINTER(ctypes.c_int8)),
        )

    def set_decode(
        self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]
    ) -> None:
        """One token each of several sequences, all with an output; row i is the i-th."""
        n = len(tokens)
        self._token[:n] = tokens
        self._position[:n] = positions
        self._sequence[:n] = sequences
        self._output[:n] = 1
        self._set_length(n)

    def set_prompt(self, tokens: array[int], start: int, sequence: int, *, output: str) -> None:
        """Consecutive tokens of one sequence from position ``start`` on.

        :param output: ``none``, ``last`` or ``all``.
        """
        self._set_length(0)
        self.add_prompt(tokens, start, sequence, output=output)

    def add_prompt(self, tokens: array[int], start: int, sequence: int, *, output: str) -> None:
        """The same, after what is in the batch already."""
        begin, end = self.n_tokens, self.n_tokens + len(tokens)
        self._token[begin:end] = tokens
        self._position[begin:end] = np.arange(start, start + len(tokens))
        self._sequence[begin:end] = sequence
        self._output[begin:end] = int(output == "all")
        if output == "last":
            self._output[end - 1] = 1
        self._set_length(end)

    def clear(self) -> None:
        """Take everything out."""
        self._set_length(0)

    def _set_length(self, n: int) -> None:
        if n > self.size:
            raise ValueError(f"{n} tokens in a batch of {self.size}")
        self.n_tokens = n
        self.native.n_tokens = n
