"""Who runs: admission, the choice of the next prompt, and who pauses when cells run out.

Admission is strictly in the order of arrival. When a running sequence needs a cell and there is
none, the *youngest* running one pauses: its cells are freed, and it waits, in its place by age, to
be evaluated again. So the oldest always goes on, and alone it always fits; nobody fails because of
others.
"""

from __future__ import annotations

from bisect import insort
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runner_llamacpp.kvcache import KvCache
    from runner_llamacpp.sequence import Sequence

__all__ = ["Schedule"]

#: Cells that admission leaves to every running sequence to grow into, so that what was just
#: admitted is not paused at once.
HEADROOM = 16
#: Every so many chunks the oldest prompt is served, though a shorter one waits.
OLDEST_EVERY = 4

_AGE = attrgetter("age")


class Schedule:
    """Sequences that wait and sequences that run, both oldest first."""

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._n_chunks = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        insort(self.waiting, sequence, key=_AGE)

    def remove(self, sequence: Sequence, *, keep: bool = False) -> None:
        """Forget a sequence, which has finished, failed or been cancelled.

        :param keep: leave its tokens in the cache for reuse.
        """
        if sequence.resident is None:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        if keep:
            self._cache.retire(sequence.resident)
        else:
            self._cache.drop(sequence.resident)
        sequence.resident = None

    def admit(self) -> None:
        """Make sequences resident, in order, until one does not fit."""
        while self.waiting and self._fits(self.waiting[0]):
            sequence = self.waiting.pop(0)
            reuse = sequence.pooling is None and not sequence.is_following
            sequence.resident = self._cache.open(sequence.tokens, sequence.n_prompt, reuse=reuse)
            insort(self.running, sequence, key=_AGE)

    def decoding(self) -> list[Sequence]:
        """Sequences that need their next token, with a free cell for each; others may pause."""
        while True:
            ready = [s for s in self.running if _is_decoding(s)]
            if self._cache.make_free(len(ready)) or not self.pause_youngest():
                return ready

    def next_prompt(self) -> Sequence | None:
        """Whose prompt goes on: the one with the least left, at times the oldest."""
        unread = [s for s in self.running if not _is_decoding(s) and not s.is_following]
        if not unread:
            return None
        self._n_chunks += 1
        if self._n_chunks % OLDEST_EVERY == 0:
            return unread[0]
        return min(unread, key=lambda s: s.n_left)

    def pause_youngest(self) -> bool:
        """Take the cells of the youngest; False when it is the only one."""
        if len(self.running) < 2:
            return False
        sequence = self.running.pop()
        assert sequence.resident is not None
        self._cache.drop(sequence.resident)
        sequence.resident = None
        sequence.is_begun = False
        if sequence.pooling is not None:
            sequence.pooling.reset()
        self.add(sequence)
        return True

    def _fits(self, sequence: Sequence) -> bool:
        if not self._cache.has_room_for_one:
            return False
        if not self.running:
            return True
        needed = sum(map(_needed, (*self.running, sequence)))
        headroom = HEADROOM * (len(self.running) + 1)
        return self._cache.n_available >= needed + headroom


def _is_decoding(sequence: Sequence) -> bool:
    return sequence.n_left == 1 and sequence.pooling is None and not sequence.is_following


def _needed(sequence: Sequence) -> int:
    """Cells a sequence will take soon: its prompt's, unless it gets them from its leader."""
    return 1 if sequence.is_following else sequence.n_left
