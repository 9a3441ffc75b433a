"""Books of the KV cache: which cells are held, and by how many sequences."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["CellLedger", "Cells"]

#: The cells of one sequence, by position. Numbers of our own: where llama.cpp puts a token is its
#: business; what counts is that shared tokens have the same number.
Cells = array


class _Holders:
    """How many hold each cell, and how many cells are held at all."""

    def __init__(self, n_cells: int) -> None:
        self._counts = [0] * n_cells
        self.n_held = 0

    def add(self, cells: Iterable[int]) -> None:
        counts = self._counts
        for cell in cells:
            self.n_held += not counts[cell]
            counts[cell] += 1

    def remove(self, cells: Sequence[int]) -> list[int]:
        """:returns: the cells that nobody holds any more."""
        counts = self._counts
        for cell in cells:
            counts[cell] -= 1
        freed = [cell for cell in cells if not counts[cell]]
        self.n_held -= len(freed)
        return freed


class CellLedger:
    """A cell is held by every sequence that contains its token: shared cells count once.

    *Running* sequences need their cells; those of the others can be taken at any time.
    """

    def __init__(self, n_cells: int) -> None:
        self.n_cells = n_cells
        self._free = list(range(n_cells - 1, -1, -1))
        self._all = _Holders(n_cells)
        self._running = _Holders(n_cells)

    @property
    def n_free(self) -> int:
        """Cells that hold nothing."""
        return len(self._free)

    @property
    def n_running(self) -> int:
        """Distinct cells of running sequences."""
        return self._running.n_held

    def allocate(self, n: int) -> Cells[int]:
        """Take ``n`` free cells for a running sequence."""
        if n > len(self._free):
            raise ValueError(f"{n} cells asked for, {len(self._free)} are free")
        cells = array("i", self._free[len(self._free) - n :])
        del self._free[len(self._free) - n :]
        self._all.add(cells)
        self._running.add(cells)
        return cells

    def share(self, cells: Cells[int]) -> None:
        """Let one more running sequence hold cells."""
        self._all.add(cells)
        self._running.add(cells)

    def park(self, cells: Cells[int]) -> None:
        """A running sequence has finished, and keeps its cells until they are needed."""
        self._running.remove(cells)

    def unpark(self, cells: Cells[int]) -> None:
        """A finished sequence goes on under a new request."""
        self._running.add(cells)

    def release(self, cells: Cells[int], *, is_running: bool) -> None:
        """A sequence lets go of cells."""
        if is_running:
            self._running.remove(cells)
        self._free.extend(self._all.remove(cells))
