"""One choice of an answer: from sampled tokens to text that may be shown."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from runner.api import Delta
from runner.chat.stop import StopMatcher
from runner.chat.utf8 import Utf8Decoder

if TYPE_CHECKING:
    from runner.api import FinishReason, Generation, TokenLogprob
    from runner_llamacpp.vocabulary import Vocabulary

__all__ = ["Choice"]


class Choice:
    """Collects the tokens of one choice; gives out whole characters, and never a stop string.

    :param index: of the choice in its request.
    :param n_room: tokens that fit into the context after the prompt.
    :raises RequestError: a stop string is empty.
    """

    def __init__(
        self,
        request_id: str,
        index: int,
        generation: Generation,
        vocabulary: Vocabulary,
        n_room: int,
    ) -> None:
        self.index = index
        self.n_logprobs = generation.logprobs
        self.reason: FinishReason | None = None
        #: Tokens of the answer; one that ended it is not counted, those of a stop string are.
        self.n_generated = 0
        limit = generation.max_tokens
        self.n_limit = n_room if limit is None else min(limit, n_room)
        self._request_id = request_id
        self._vocabulary = vocabulary
        self._utf8 = Utf8Decoder()
        self._stops = StopMatcher(generation.stop)
        self._text = ""
        #: Characters decoded, and characters given out or ready to be.
        self._n_decoded = 0
        self._n_released = 0
        #: Entries not given out yet, with the place in the text where their token begins.
        self._logprobs: deque[tuple[int, TokenLogprob]] = deque()

    def take(self, token: int, logprob: TokenLogprob | None) -> None:
        """Add a sampled token; sets :attr:`reason` when it was the last."""
        if self._vocabulary.is_end(token):
            self._finish("stop")
            return
        self.n_generated += 1
        if logprob is not None:
            self._logprobs.append((self._n_decoded, logprob))
        is_hit = self._feed(self._utf8.feed(self._vocabulary.piece(token)))
        if is_hit:
            self.reason = "stop"
        elif self.n_generated >= self.n_limit:
            self._finish("length")

    def finish_empty(self) -> None:
        """End a choice that may not generate anything (``max_tokens`` 0)."""
        self._finish("length")

    def drain(self) -> Delta | None:
        """What can be given out since the last call."""
        entries = []
        while self._logprobs and self._logprobs[0][0] < self._n_released:
            entries.append(self._logprobs.popleft()[1])
        if not self._text and not entries:
            return None
        text, self._text = self._text, ""
        return Delta(
            request_id=self._request_id, index=self.index, text=text, logprobs=tuple(entries)
        )

    def _feed(self, text: str) -> bool:
        self._n_decoded += len(text)
        safe, is_hit = self._stops.feed(text)
        self._text += safe
        self._n_released += len(safe)
        return is_hit

    def _finish(self, reason: FinishReason) -> None:
        """End without a stop string: all that was held back turns out to be text."""
        is_hit = self._feed(self._utf8.flush())
        if is_hit:
            self.reason = "stop"
            return
        rest = self._stops.flush()
        self._text += rest
        # One more than all: entries of tokens without text at the very end are given out, too.
        self._n_released += len(rest) + 1
        self.reason = reason
