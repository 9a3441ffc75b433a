"""What the engine knows of a request, and of each of its sequences."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runner.api import Timings, Usage

if TYPE_CHECKING:
    from array import array

    from runner_llamacpp.choice import Choice
    from runner_llamacpp.embedding import TokenPooling
    from runner_llamacpp.kvcache import Resident
    from runner_llamacpp.sampler import Sampler

__all__ = ["Job", "Sequence"]


class Job:
    """One request: its sequences, and the sums that its last event reports."""

    def __init__(self, request_id: str, n_prompt: int) -> None:
        self.id = request_id
        self.n_prompt = n_prompt
        self.n_completion = 0
        self.n_cached = 0
        self.sequences: list[Sequence] = []
        self._submitted = time.perf_counter()
        self._started: float | None = None
        self._first_output: float | None = None

    @property
    def is_started(self) -> bool:
        """Whether any of it has been evaluated."""
        return self._started is not None

    def mark_started(self) -> None:
        """Its first tokens are evaluated now."""
        self._started = time.perf_counter()

    def mark_output(self) -> None:
        """A token was sampled; the first counts."""
        if self._first_output is None:
            self._first_output = time.perf_counter()

    def usage(self) -> Usage:
        """Tokens, as the contract counts them."""
        return Usage(n_prompt=self.n_prompt, n_completion=self.n_completion, n_cached=self.n_cached)

    def timings(self) -> Timings:
        """Where the time went until now."""
        now = time.perf_counter()
        started = self._started if self._started is not None else now
        first = self._first_output if self._first_output is not None else now
        return Timings(
            queue_s=started - self._submitted, prefill_s=first - started, decode_s=now - first
        )


class Sequence:
    """One stream of tokens: a choice of an answer, or a text to embed.

    Waiting while ``resident`` is None. ``tokens`` is the prompt and what was generated; those that
    the resident does not have yet are to be evaluated.
    """

    def __init__(
        self,
        job: Job,
        age: int,
        tokens: array[int],
        *,
        choice: Choice | None = None,
        sampler: Sampler | None = None,
        pooling: TokenPooling | None = None,
        leader: Sequence | None = None,
        index: int = 0,
    ) -> None:
        self.job = job
        #: Of the choice, or of the text to embed, in its request.
        self.index = index
        #: Counts up over all sequences: a smaller one was asked for earlier.
        self.age = age
        self.tokens = tokens
        self.n_prompt = len(tokens)
        #: What is being made: a choice with its sampler, or a pooled embedding.
        self.choice = choice
        self.sampler = sampler
        self.pooling = pooling
        #: The first choice of the same prompt, which evaluates it for all.
        self.leader = leader
        self.resident: Resident | None = None
        #: Whether any of it was evaluated since it last became resident, and since ever.
        self.is_begun = False
        self.was_begun = False

    @property
    def kept(self) -> Resident:
        """Its resident; only while it runs."""
        assert self.resident is not None
        return self.resident

    @property
    def n_left(self) -> int:
        """Tokens to evaluate: 1 while decoding, more while in its prompt."""
        return len(self.tokens) - (len(self.resident) if self.resident is not None else 0)

    @property
    def is_following(self) -> bool:
        """Whether it waits for its leader to have evaluated their prompt."""
        leader = self.leader
        return (
            leader is not None
            and not self.is_begun
            and leader.resident is not None
            and len(leader.resident) < self.n_prompt
            and len(self.tokens) == self.n_prompt == len(leader.tokens)
        )

    def close(self) -> None:
        """Free what is native."""
        if self.sampler is not None:
            self.sampler.close()
