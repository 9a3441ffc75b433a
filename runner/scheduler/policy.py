"""What to do next: pure functions of a snapshot.

Claims are served first come, first served by device: a claim that has to wait keeps the devices it
needs from later claims, so nobody overtakes it, while claims for other devices go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runner.api.errors import RunnerError
from runner.scheduler.eviction import cheapest_set, eviction_cost, shortage
from runner.scheduler.state import HOLDING, Record, WaitReason
from runner.scheduler.words import pinned_error, too_large_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from runner.scheduler.state import Phase, Snapshot

__all__ = [
    "Action",
    "Close",
    "Grant",
    "Refuse",
    "Reopen",
    "Stop",
    "Wait",
    "decide",
    "held_by_device",
    "next_deadline",
]


class Grant(msgspec.Struct, frozen=True):
    """Reserve the claim's memory and start its load."""

    worker_id: int


class Wait(msgspec.Struct, frozen=True):
    """The claim stays in the queue; ``is_head`` when no earlier claim stands before it."""

    worker_id: int
    reason: WaitReason
    is_head: bool


class Refuse(msgspec.Struct, frozen=True):
    """The claim can never be granted."""

    worker_id: int
    error: RunnerError


class Stop(msgspec.Struct, frozen=True):
    """End an idle worker: ``idle`` too long, ``drained``, or ``evicted`` for a claim."""

    worker_id: int
    cause: str
    claim_id: int | None = None


class Close(msgspec.Struct, frozen=True):
    """Give a leased worker no new leases, so that it makes room for a starving claim."""

    worker_id: int
    claim_id: int


class Reopen(msgspec.Struct, frozen=True):
    """The claim this worker was closed for needs it no more."""

    worker_id: int


Action = Grant | Wait | Refuse | Stop | Close | Reopen


def decide(snapshot: Snapshot) -> tuple[Action, ...]:
    """All that is to be done now. Apply it and ask again, until only :class:`Wait` comes.

    Reopenings come alone: they give leases back to a worker and may take claims out of the queue,
    which the next decision then sees. Otherwise every claim gets a Grant, a Wait or a Refuse.
    """
    if reopened := tuple(_reopenings(snapshot)):
        return reopened
    stops = tuple(_ends(snapshot))
    ended = {stop.worker_id for stop in stops}
    workers = tuple(
        msgspec.structs.replace(worker, phase="stopping") if worker.id in ended else worker
        for worker in snapshot.workers
    )
    return (*stops, *_Queue(msgspec.structs.replace(snapshot, workers=workers)).serve())


def next_deadline(snapshot: Snapshot) -> float | None:
    """When to decide again if nothing happens before."""
    moments = [expiry for worker in snapshot.workers if (expiry := _expiry(worker)) is not None]
    moments += [
        worker.head_since + snapshot.limits.starvation_s
        for worker in snapshot.workers
        if worker.phase == "waiting" and worker.head_since is not None
    ]
    return min((moment for moment in moments if moment > snapshot.now), default=None)


def held_by_device(workers: Iterable[Record], *phases: Phase) -> dict[str, int]:
    """Reserved bytes, of the workers in ``phases`` (all that hold memory if none is named)."""
    held: dict[str, int] = {}
    for worker in workers:
        if worker.phase in (phases or HOLDING):
            for device, size in worker.need.items():
                held[device] = held.get(device, 0) + size
    return held


def _expiry(worker: Record) -> float | None:
    """When an idle worker has been idle long enough; None for those that stay."""
    if not worker.is_idle or worker.is_pinned or worker.keep_alive_s < 0:
        return None
    return worker.last_used + worker.keep_alive_s


def _reopenings(snapshot: Snapshot) -> Iterator[Reopen]:
    claims = {worker.id for worker in snapshot.workers if worker.phase == "waiting"}
    replaced = {
        worker.spec.key for worker in snapshot.workers if worker.phase in {"loading", "ready"}
    }
    for worker in snapshot.workers:
        is_closed_for_claim = worker.phase == "draining" and worker.closing_for is not None
        if not is_closed_for_claim or worker.spec.key in replaced:
            continue
        if worker.closing_for not in claims:
            replaced.add(worker.spec.key)
            yield Reopen(worker.id)


def _ends(snapshot: Snapshot) -> Iterator[Stop]:
    for worker in snapshot.workers:
        if worker.phase == "draining" and not worker.leases:
            yield Stop(worker.id, "drained", worker.closing_for)
        elif (expiry := _expiry(worker)) is not None and expiry <= snapshot.now:
            yield Stop(worker.id, "idle")


class _Queue:
    """One pass over the claims; scratch space of a single decision."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._now = snapshot.now
        self._starvation_s = snapshot.limits.starvation_s
        self._capacity = snapshot.capacity
        self._workers = {worker.id: worker for worker in snapshot.workers}
        self._free = _sum(snapshot.capacity, self._held(), sign=-1)
        self._pinned = [
            worker
            for worker in snapshot.workers
            if worker.is_pinned and worker.phase in {"loading", "ready"}
        ]

    def serve(self) -> Iterator[Action]:
        """Go through the claims in order of arrival."""
        blocked: set[str] = set()
        for claim in [worker for worker in self._workers.values() if worker.phase == "waiting"]:
            if (error := self._refusal(claim)) is not None:
                yield Refuse(claim.id, error)
            elif not blocked.isdisjoint(claim.need):
                blocked.update(claim.need)
                yield Wait(claim.id, "behind", is_head=False)
            elif not shortage(claim.need, self._free):
                self._free = _sum(self._free, claim.need, sign=-1)
                self._set_phase(claim, "loading")
                if claim.is_pinned:
                    self._pinned.append(claim)
                yield Grant(claim.id)
            else:
                blocked.update(claim.need)
                yield from self._make_room(claim)

    def _refusal(self, claim: Record) -> RunnerError | None:
        if too_much := shortage(claim.need, self._capacity):
            return too_large_error(claim, self._capacity, min(too_much))
        if not self._pinned:
            return None
        reachable = _sum(self._capacity, held_by_device(self._pinned), sign=-1)
        if lacking := shortage(claim.need, reachable):
            holders = [w for w in self._pinned if not lacking.keys().isdisjoint(w.need)]
            return pinned_error(claim, self._capacity, holders)
        return None

    def _make_room(self, claim: Record) -> Iterator[Action]:
        """The claim stands at the head and does not fit now."""
        coming = _sum(self._free, self._held("stopping"))
        if not (missing := shortage(claim.need, coming)):
            yield Wait(claim.id, "unloading", is_head=True)
            return
        if (evicted := self._cheapest(missing, with_leased=False)) is not None:
            yield from self._give_up(evicted, claim)
            yield Wait(claim.id, "unloading", is_head=True)
            return
        if not self._is_starving(claim):
            is_busy = any(
                w.phase in {"ready", "draining"} and w.leases for w in self._workers.values()
            )
            yield Wait(claim.id, "busy" if is_busy else "loading", is_head=True)
            return
        missing = shortage(claim.need, _sum(coming, self._held("draining")))
        victims = self._cheapest(missing, with_leased=True) if missing else ()
        yield from self._give_up(victims or (), claim)
        yield Wait(claim.id, "loading" if victims is None else "closing", is_head=True)

    def _is_starving(self, claim: Record) -> bool:
        return claim.head_since is not None and claim.head_since + self._starvation_s <= self._now

    def _cheapest(
        self, missing: Mapping[str, int], *, with_leased: bool
    ) -> tuple[Record, ...] | None:
        candidates = [
            worker
            for worker in self._workers.values()
            if worker.phase == "ready"
            and not worker.is_pinned
            and (with_leased or not worker.leases)
        ]
        return cheapest_set(candidates, missing, lambda worker: eviction_cost(worker, self._now))

    def _give_up(self, victims: Iterable[Record], claim: Record) -> Iterator[Action]:
        for worker in victims:
            if worker.leases:
                self._set_phase(worker, "draining")
                yield Close(worker.id, claim.id)
            else:
                self._set_phase(worker, "stopping")
                yield Stop(worker.id, "evicted", claim.id)

    def _set_phase(self, worker: Record, phase: Phase) -> None:
        self._workers[worker.id] = msgspec.structs.replace(worker, phase=phase)

    def _held(self, *phases: Phase) -> dict[str, int]:
        return held_by_device(self._workers.values(), *phases)


def _sum(left: Mapping[str, int], right: Mapping[str, int], *, sign: int = 1) -> dict[str, int]:
    return {
        device: left.get(device, 0) + sign * right.get(device, 0)
        for device in left.keys() | right.keys()
    }
