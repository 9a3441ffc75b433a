"""Which workers to give up so that a claim fits: the cheapest set that is enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from runner.scheduler.state import Record

__all__ = ["cheapest_set", "eviction_cost", "shortage"]

#: Up to this many candidates every combination is weighed (at most 8,192 steps, a few ms).
EXACT_LIMIT = 12
#: What reading weights again may cost when they have left the page cache.
_COLD_READ_BYTES_PER_S = 2**30
#: Keeps a worker that was used a moment ago from looking infinitely precious.
_RECENT_S = 30.0
#: Closing a worker under its users weighs more than any reload.
_COST_PER_LEASE = 1000.0
_LEAST_RELOAD_S = 0.01


def eviction_cost(worker: Record, now: float) -> float:
    """The expected price of giving a worker up: its reload, times how likely it is soon needed.

    Likelihood falls with idle time (least recently used), the price grows with the measured load
    time and the size. Always above zero, so that a cheapest set holds no superfluous worker.
    """
    reload_s = max(
        worker.load_s + sum(worker.need.values()) / _COLD_READ_BYTES_PER_S, _LEAST_RELOAD_S
    )
    idle_s = max(0.0, now - worker.last_used)
    return reload_s / (idle_s + _RECENT_S) + _COST_PER_LEASE * len(worker.leases)


def shortage(need: Mapping[str, int], available: Mapping[str, int]) -> dict[str, int]:
    """What is missing, by device; empty when ``need`` fits into ``available``."""
    missing = {device: size - available.get(device, 0) for device, size in need.items()}
    return {device: size for device, size in missing.items() if size > 0}


def cheapest_set(
    candidates: Iterable[Record], missing: Mapping[str, int], cost: Callable[[Record], float]
) -> tuple[Record, ...] | None:
    """The cheapest workers that together hold what is missing; None when all are not enough.

    No proper subset of the answer would do. Exact up to :data:`EXACT_LIMIT` candidates; beyond that
    greedy, least cost first, then without what turned out superfluous.
    """
    useful = [worker for worker in candidates if any(worker.need.get(d, 0) > 0 for d in missing)]
    if _missing_after(useful, missing):
        return None
    useful.sort(key=lambda worker: (cost(worker), worker.id))
    if len(useful) <= EXACT_LIMIT:
        return _exact(useful, missing, cost)
    return _greedy(useful, missing)


def _missing_after(workers: Iterable[Record], missing: Mapping[str, int]) -> dict[str, int]:
    freed: dict[str, int] = {}
    for worker in workers:
        for device, size in worker.need.items():
            freed[device] = freed.get(device, 0) + size
    return shortage(missing, freed)


def _exact(
    workers: Sequence[Record], missing: Mapping[str, int], cost: Callable[[Record], float]
) -> tuple[Record, ...]:
    costs = [cost(worker) for worker in workers]
    best: tuple[float, int] = (float("inf"), 0)
    answer: tuple[Record, ...] = ()

    def visit(
        index: int, left: Mapping[str, int], chosen: tuple[Record, ...], price: float
    ) -> None:
        nonlocal best, answer
        if (price, len(chosen)) >= best:
            return
        if not left:
            best, answer = (price, len(chosen)), chosen
        elif index < len(workers):
            worker = workers[index]
            visit(index + 1, shortage(left, worker.need), (*chosen, worker), price + costs[index])
            visit(index + 1, left, chosen, price)

    visit(0, missing, (), 0.0)
    return answer


def _greedy(workers: Sequence[Record], missing: Mapping[str, int]) -> tuple[Record, ...]:
    chosen: list[Record] = []
    for worker in workers:
        if not _missing_after(chosen, missing):
            break
        chosen.append(worker)
    for worker in reversed(tuple(chosen)):
        rest = [other for other in chosen if other.id != worker.id]
        if not _missing_after(rest, missing):
            chosen = rest
    return tuple(chosen)
