"""Sequences resident in llama.cpp's unified KV cache, and the reuse of what they share.

A *resident* is a sequence id with the tokens evaluated under it. It is running while a request
needs it, then idle: kept, the least recently used going first, until its id or its cells are
needed. A new prompt that begins like a resident's tokens takes over or shares those cells.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

import numpy as np

from runner_llamacpp.cells import CellLedger, Cells

__all__ = ["KvCache", "Resident", "SequenceMemory", "affordable_idle_cells"]

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Where attention is fused, a prompt is cut for reuse at a multiple of this. Evaluated again from
#: there in the same chunks, it gives the same logits to the last bit as when it was evaluated whole
#: (measured for Q4_1 and Q8_0 weights; at other places they differ by noise).
ALIGNMENT = 128
#: Fewer common tokens than this are not worth sharing.
_FEWEST = 8


class SequenceMemory(Protocol):
    """What llama.cpp's memory can do with sequences: see ``NativeContext``."""

    def remove(self, seq_id: int, start: int = -1) -> bool:
        """Forget a sequence from position ``start`` on; -1 is all of it."""

    def copy(self, source: int, target: int, end: int) -> None:
        """Share the first ``end`` cells of ``source``; -1 is all of them."""

    def first_position(self, seq_id: int) -> int:
        """The lowest position of a sequence that every layer still remembers."""


class Resident:
    """A sequence in the cache; ``len(tokens) == len(cells)`` are evaluated."""

    __slots__ = ("cells", "n_prompt", "seq_id", "tokens")

    def __init__(self, seq_id: int, n_prompt: int) -> None:
        self.seq_id = seq_id
        self.n_prompt = n_prompt
        self.tokens = array("i")
        self.cells: Cells[int] = array("i")

    def __len__(self) -> int:
        return len(self.tokens)


class KvCache:
    """Who is in the cache. All methods keep our books and llama.cpp's memory in step.

    :param n_swa: sliding window of the model, 0 for none. Beyond the window those layers forget.
    :param can_cut: whether a sequence can be shortened (a recurrent state cannot).
    :param alignment: see :data:`ALIGNMENT`; 1 cuts a prompt anywhere.
    :param most_idle: cells that finished sequences may keep for reuse, beside those of the one that
        finished last; None keeps nothing. See :func:`affordable_idle_cells`.
    """

    def __init__(
        self,
        memory: SequenceMemory,
        *,
        n_cells: int,
        n_sequences: int,
        n_swa: int,
        can_cut: bool,
        alignment: int,
        most_idle: int | None,
    ) -> None:
        self._memory = memory
        self._ledger = CellLedger(n_cells)
        self._free_ids = list(range(n_sequences - 1, -1, -1))
        self._n_swa = n_swa
        self._can_cut = can_cut
        self._alignment = alignment
        self._most_idle = most_idle if can_cut else None
        self._running: dict[int, Resident] = {}
        #: By sequence id, least recently used first.
        self._idle: dict[int, Resident] = {}

    @property
    def n_cells(self) -> int:
        """Tokens the cache holds in all."""
        return self._ledger.n_cells

    @property
    def n_used(self) -> int:
        """Cells that running sequences hold; idle ones are given up when asked for."""
        return self._ledger.n_running

    @property
    def n_available(self) -> int:
        """Cells that can be had without stopping anybody."""
        return self._ledger.n_cells - self._ledger.n_running

    @property
    def has_room_for_one(self) -> bool:
        """Whether one more sequence can become resident."""
        return bool(self._free_ids or self._idle)

    def open(self, tokens: array[int], n_prompt: int, *, reuse: bool) -> Resident:
        """Make a sequence resident, with as much of ``tokens`` evaluated as can be reused.

        At least the last token is left to evaluate, for its logits. Call only if
        :attr:`has_room_for_one`.
        """
        donor, n_common = self._best_donor(tokens) if reuse else (None, 0)
        if donor is not None and donor.seq_id in self._idle:
            if n_common >= donor.n_prompt - 1 or not self._can_open_beside(donor):
                return self._take_over(donor, self._usable(donor, n_common), n_prompt)
            # Not to be the one that is given up for the new one's id.
            self._idle[donor.seq_id] = self._idle.pop(donor.seq_id)
        if not self._free_ids:
            self.evict_one()
        resident = Resident(self._free_ids.pop(), n_prompt)
        self._running[resident.seq_id] = resident
        if donor is not None:
            self._share(donor, resident, self._usable(donor, n_common))
        # Every idle cell slows the others down, and so does every gap below it: the sequence that
        # finished last was kept for its next turn, and this is another conversation.
        self._trim(keep=0)
        return resident

    def improve(self, resident: Resident, tokens: array[int]) -> int:
        """Reuse what others have evaluated since ``resident`` was opened.

        :returns: how many tokens of it are evaluated now.
        """
        donor, n_common = self._best_donor(tokens, other_than=resident)
        if donor is not None and (n_usable := self._usable(donor, n_common)) > len(resident):
            self._empty(resident)
            self._share(donor, resident, n_usable)
        return len(resident)

    def fork(self, source: Resident, target: Resident) -> None:
        """Let ``target``, which is empty, share everything of ``source``."""
        self._memory.copy(source.seq_id, target.seq_id, -1)
        self._ledger.share(source.cells)
        target.tokens, target.cells = source.tokens[:], source.cells[:]

    def append(self, resident: Resident, tokens: Iterable[int], n: int) -> None:
        """Note ``n`` tokens that llama.cpp has evaluated; :meth:`make_free` was called before."""
        resident.cells.extend(self._ledger.allocate(n))
        resident.tokens.extend(tokens)

    def make_free(self, n: int) -> bool:
        """Have ``n`` free cells, giving up idle sequences; False if those do not suffice."""
        while self._ledger.n_free < n and self._idle:
            self.evict_one()
        return self._ledger.n_free >= n

    def retire(self, resident: Resident) -> None:
        """A sequence has finished: keep it, idle, and give up older ones if they are too many."""
        if self._most_idle is None or len(resident) == 0:
            self.drop(resident)
            return
        self._ledger.park(resident.cells)
        del self._running[resident.seq_id]
        self._idle[resident.seq_id] = resident
        self._trim(keep=1)

    def drop(self, resident: Resident) -> None:
        """Forget a running sequence and free what only it holds."""
        del self._running[resident.seq_id]
        self._forget(resident, is_running=True)

    def evict_one(self) -> bool:
        """Give up the idle sequence that was used longest ago; False if there is none."""
        if not self._idle:
            return False
        self._forget(self._idle.pop(next(iter(self._idle))), is_running=False)
        return True

    @property
    def _n_idle(self) -> int:
        return self._ledger.n_cells - self._ledger.n_free - self._ledger.n_running

    def _trim(self, *, keep: int) -> None:
        """Give up idle sequences, all but the last ``keep``, until few enough cells are idle."""
        while len(self._idle) > keep and self._n_idle > (self._most_idle or 0):
            self.evict_one()

    def _forget(self, resident: Resident, *, is_running: bool) -> None:
        self._memory.remove(resident.seq_id)
        self._ledger.release(resident.cells, is_running=is_running)
        self._free_ids.append(resident.seq_id)

    def _best_donor(
        self, tokens: array[int], other_than: Resident | None = None
    ) -> tuple[Resident | None, int]:
        """The resident with the longest common beginning; of equals, a running one."""
        best, n_best = None, 0
        if self._can_cut and len(tokens) > 1:
            for resident in (*self._running.values(), *self._idle.values()):
                n = _n_common(tokens, resident.tokens) if resident is not other_than else 0
                if n > n_best:
                    best, n_best = resident, n
        return best, min(n_best, len(tokens) - 1)

    def _usable(self, donor: Resident, n_common: int) -> int:
        """How much of a common beginning may be reused.

        Within the donor's prompt it is cut to the alignment; behind that the donor's answer was
        evaluated token by token, which no cut makes exact, so all of it is taken. With a sliding
        window llama.cpp *says* it can go back to any position, and computes nonsense when the
        window before that position is gone: hence the look at the first position.
        """
        n = n_common
        if n <= donor.n_prompt:
            n = n // self._alignment * self._alignment
        if n < _FEWEST:
            return 0
        if n and self._n_swa:
            first = self._memory.first_position(donor.seq_id)
            if not 0 <= first <= max(0, n - self._n_swa):
                return 0
        return n

    def _can_open_beside(self, donor: Resident) -> bool:
        return bool(self._free_ids) or any(seq_id != donor.seq_id for seq_id in self._idle)

    def _take_over(self, donor: Resident, n: int, n_prompt: int) -> Resident:
        """Go on under the donor's id: the request repeats or continues what it had."""
        del self._idle[donor.seq_id]
        self._ledger.unpark(donor.cells)
        self._running[donor.seq_id] = donor
        if n < len(donor):
            self._memory.remove(donor.seq_id, n or -1)
            self._ledger.release(donor.cells[n:], is_running=True)
            del donor.cells[n:], donor.tokens[n:]
        donor.n_prompt = n_prompt
        return donor

    def _share(self, donor: Resident, target: Resident, n: int) -> None:
        if n:
            self._memory.copy(donor.seq_id, target.seq_id, n)
            target.cells, target.tokens = donor.cells[:n], donor.tokens[:n]
            self._ledger.share(target.cells)

    def _empty(self, resident: Resident) -> None:
        if len(resident):
            self._memory.remove(resident.seq_id)
            self._ledger.release(resident.cells, is_running=True)
            resident.cells, resident.tokens = array("i"), array("i")


def affordable_idle_cells(weight_bytes: int, n_layers: int, n_heads: int, *, is_fused: bool) -> int:
    """Idle cells that slow decoding down by some 3 %.

    In a unified cache attention passes over every cell, to find it masked: 1.3 ns for each layer
    and head where it is fused, 12 ns where it is not and masks what it has computed (measured on a
    2.6 GHz Xeon), beside reading the weights once, at some 10 GB/s.
    """
    token_s = weight_bytes / 10e9
    cell_s = (1.3e-9 if is_fused else 12e-9) * max(n_layers * n_heads, 1)
    return int(0.03 * token_s / cell_s)


def _n_common(a: array[int], b: array[int]) -> int:
    n = min(len(a), len(b))
    if n == 0 or a[0] != b[0]:
        return 0
    differing = np.flatnonzero(np.asarray(a)[:n] != np.asarray(b)[:n])
    return int(differing[0]) if len(differing) else n
