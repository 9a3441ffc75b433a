from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from runner.api.errors import CapacityError, ModelTooLarge
from runner.scheduler.eviction import EXACT_LIMIT, cheapest_set, eviction_cost, shortage
from runner.scheduler.policy import (
    Close,
    Grant,
    Refuse,
    Reopen,
    Stop,
    Wait,
    decide,
    held_by_device,
    next_deadline,
)
from runner.scheduler.state import Limits, Record, Snapshot

from .conftest import record, spec

DEVICES = ("cpu", "cuda:0")
NOW = 1000.0
LIMITS = Limits(starvation_s=20.0)


def snapshot(*workers: Record, capacity: dict[str, int] | None = None) -> Snapshot:
    return Snapshot(
        now=NOW, limits=LIMITS, capacity=capacity or {"cpu": 100}, workers=tuple(workers)
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Any state with a ledger within capacity; keys are unique except for closed workers."""
    need = st.dictionaries(st.sampled_from(DEVICES), st.integers(1, 60), max_size=2)
    workers: list[Record] = []
    phases = st.sampled_from(
        ["estimating", "waiting", "waiting", "loading", "ready", "ready", "draining", "stopping"]
    )
    lease = 0
    for worker_id in range(1, draw(st.integers(0, 9)) + 1):
        phase = draw(phases)
        n_leases = 0 if phase == "stopping" else draw(st.sampled_from([0, 0, 1, 2]))
        lease += n_leases
        since = st.sampled_from([None, NOW - 60, NOW - 20, NOW - 19])
        worker = record(
            worker_id,
            phase,
            {} if phase == "estimating" else draw(need),
            leases=tuple(range(lease - n_leases, lease)),
            is_pinned=draw(st.integers(0, 3)) == 0,
            keep_alive_s=draw(st.sampled_from([-1.0, 0.0, 30.0, 300.0])),
            last_used=draw(st.floats(NOW - 400, NOW)),
            head_since=draw(since) if phase == "waiting" else None,
            loading_since=0.0,
            ready_since=draw(st.floats(0, 60)),
            closing_for=draw(st.one_of(st.none(), st.integers(1, 9)))
            if phase == "draining"
            else None,
        )
        workers.append(worker)
    held = held_by_device(workers)
    capacity = {device: held.get(device, 0) + draw(st.integers(0, 20)) for device in DEVICES}
    return snapshot(*workers, capacity=capacity)


def settled(state: Snapshot) -> tuple[Snapshot, tuple[Any, ...]]:
    """The state once closings are undone, and the decision on it."""
    actions = decide(state)
    while ids := {action.worker_id for action in actions if isinstance(action, Reopen)}:
        state = msgspec.structs.replace(
            state,
            workers=tuple(
                msgspec.structs.replace(w, phase="ready", closing_for=None) if w.id in ids else w
                for w in state.workers
            ),
        )
        actions = decide(state)
    return state, actions


@given(snapshots())
def test_leased_loading_and_pinned_workers_are_never_stopped(state: Snapshot) -> None:
    state, actions = settled(state)
    by_id = {worker.id: worker for worker in state.workers}
    for action in actions:
        if isinstance(action, Stop):
            worker = by_id[action.worker_id]
            assert worker.phase in {"ready", "draining"}
            assert not worker.leases
            assert not worker.is_pinned or worker.phase == "draining"
        if isinstance(action, Close):
            worker = by_id[action.worker_id]
            assert worker.phase == "ready"
            assert not worker.is_pinned


@given(snapshots())
def test_grants_never_exceed_capacity(state: Snapshot) -> None:
    state, actions = settled(state)
    granted = {action.worker_id for action in actions if isinstance(action, Grant)}
    after = [
        msgspec.structs.replace(worker, phase="loading") if worker.id in granted else worker
        for worker in state.workers
    ]
    assert not shortage(held_by_device(after), state.capacity)


@given(snapshots())
def test_every_claim_is_granted_or_refused_or_waits_with_a_reason(state: Snapshot) -> None:
    state, actions = settled(state)
    answers = [a for a in actions if isinstance(a, Grant | Wait | Refuse)]
    claims = [worker.id for worker in state.workers if worker.phase == "waiting"]
    assert [answer.worker_id for answer in answers] == claims
    assert all(answer.reason for answer in answers if isinstance(answer, Wait))


@given(snapshots())
def test_no_claim_overtakes_another_on_the_same_device(state: Snapshot) -> None:
    state, actions = settled(state)
    by_id = {worker.id: worker for worker in state.workers}
    blocked: set[str] = set()
    for action in actions:
        if isinstance(action, Wait):
            blocked.update(by_id[action.worker_id].need)
        elif isinstance(action, Grant):
            assert blocked.isdisjoint(by_id[action.worker_id].need)


@given(snapshots())
def test_no_smaller_eviction_would_have_been_enough(state: Snapshot) -> None:
    state, actions = settled(state)
    by_id = {worker.id: worker for worker in state.workers}
    ended = {a.worker_id for a in actions if isinstance(a, Stop) and a.cause != "evicted"}
    granted = {a.worker_id for a in actions if isinstance(a, Grant)}
    victims: dict[int, set[int]] = {}
    for action in actions:
        if isinstance(action, Close) or (isinstance(action, Stop) and action.cause == "evicted"):
            victims.setdefault(action.claim_id or 0, set()).add(action.worker_id)
    everyone = set().union(*victims.values()) if victims else set()
    closed = {a.worker_id for a in actions if isinstance(a, Close)}
    for claim_id, mine in victims.items():
        others = everyone - mine
        going = {"stopping", "draining"} if mine & closed else {"stopping"}
        for size in range(len(mine)):
            for kept in combinations(sorted(mine), size):
                staying = [
                    w
                    for w in state.workers
                    if (w.phase in {"loading", "ready", "draining"} or w.id in granted)
                    and w.phase not in going
                    and w.id not in ended | others | set(kept)
                ]
                held = held_by_device(msgspec.structs.replace(w, phase="ready") for w in staying)
                room = {d: state.capacity[d] - held.get(d, 0) for d in state.capacity}
                assert shortage(by_id[claim_id].need, room)


@given(snapshots())
def test_deciding_ends_and_time_always_moves_on(state: Snapshot) -> None:
    deadline = next_deadline(state)
    assert deadline is None or deadline > state.now


@given(
    st.one_of(
        st.lists(st.tuples(st.integers(0, 40), st.floats(0, 400)), max_size=EXACT_LIMIT),
        st.lists(
            st.tuples(st.integers(1, 40), st.floats(0, 400)),
            min_size=EXACT_LIMIT + 1,
            max_size=EXACT_LIMIT + 6,
        ),
    ),
    st.integers(1, 200),
)
def test_an_eviction_set_is_enough_and_minimal(sizes: list[tuple[int, float]], need: int) -> None:
    workers = [
        record(i, "ready", {"cpu": size}, last_used=used) for i, (size, used) in enumerate(sizes)
    ]
    chosen = cheapest_set(workers, {"cpu": need}, lambda w: eviction_cost(w, NOW))
    if chosen is None:
        assert sum(size for size, _ in sizes) < need
    else:
        total = sum(worker.need["cpu"] for worker in chosen)
        assert total >= need
        assert all(total - worker.need["cpu"] < need for worker in chosen)


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 400)), max_size=7), st.integers(1, 120))
def test_the_exact_search_finds_the_cheapest_set(sizes: list[tuple[int, float]], need: int) -> None:
    workers = [
        record(i, "ready", {"cpu": size}, last_used=used) for i, (size, used) in enumerate(sizes)
    ]

    def price(chosen: tuple[Record, ...]) -> float:
        return sum(eviction_cost(worker, NOW) for worker in chosen)

    chosen = cheapest_set(workers, {"cpu": need}, lambda w: eviction_cost(w, NOW))
    enough = [
        some
        for size in range(len(workers) + 1)
        for some in combinations(workers, size)
        if sum(worker.need["cpu"] for worker in some) >= need
    ]
    assert (chosen is None) == (not enough)
    if chosen is not None:
        assert abs(price(chosen) - min(map(price, enough))) < 1e-9


def test_the_least_recently_used_of_equals_is_evicted() -> None:
    claim = record(9, "waiting", {"cpu": 10})
    old = record(1, "ready", {"cpu": 50}, last_used=NOW - 300)
    new = record(2, "ready", {"cpu": 50}, last_used=NOW - 3)
    assert decide(snapshot(old, new, claim)) == (
        Stop(1, "evicted", 9),
        Wait(9, "unloading", is_head=True),
    )


def test_a_worker_slow_to_load_is_kept_before_a_quick_one() -> None:
    claim = record(9, "waiting", {"cpu": 10})
    slow = record(1, "ready", {"cpu": 50}, last_used=NOW - 60, loading_since=0.0, ready_since=90.0)
    quick = record(2, "ready", {"cpu": 50}, last_used=NOW - 30, loading_since=0.0, ready_since=1.0)
    assert decide(snapshot(slow, quick, claim))[0] == Stop(2, "evicted", 9)


def test_memory_that_comes_free_is_waited_for_before_more_is_evicted() -> None:
    leaving = record(1, "stopping", {"cpu": 60})
    idle = record(2, "ready", {"cpu": 40})
    claim = record(3, "waiting", {"cpu": 50})
    assert decide(snapshot(leaving, idle, claim)) == (Wait(3, "unloading", is_head=True),)


def test_busy_workers_close_only_for_a_starving_head() -> None:
    busy = record(1, "ready", {"cpu": 80}, leases=(1,))
    fresh = record(2, "waiting", {"cpu": 50}, head_since=NOW - 19)
    assert decide(snapshot(busy, fresh)) == (Wait(2, "busy", is_head=True),)
    starving = msgspec.structs.replace(fresh, head_since=NOW - 20)
    assert decide(snapshot(busy, starving)) == (Close(1, 2), Wait(2, "closing", is_head=True))


def test_a_pinned_idle_worker_stays_though_it_would_make_room() -> None:
    pinned = record(1, "ready", {"cpu": 50}, is_pinned=True)
    busy = record(2, "ready", {"cpu": 50}, leases=(1,))
    claim = record(3, "waiting", {"cpu": 40})
    assert decide(snapshot(pinned, busy, claim)) == (Wait(3, "busy", is_head=True),)


def test_nothing_more_closes_when_what_drains_is_enough() -> None:
    draining = record(1, "draining", {"cpu": 50}, leases=(1,))
    busy = record(2, "ready", {"cpu": 50}, leases=(2,))
    claim = record(3, "waiting", {"cpu": 40}, head_since=NOW - 60)
    assert decide(snapshot(draining, busy, claim)) == (Wait(3, "closing", is_head=True),)


def test_nothing_closes_in_vain_while_a_load_holds_the_memory() -> None:
    busy = record(1, "ready", {"cpu": 20}, leases=(1,))
    loading = record(2, "loading", {"cpu": 70}, leases=(2,))
    claim = record(3, "waiting", {"cpu": 90}, head_since=NOW - 60)
    assert decide(snapshot(busy, loading, claim)) == (Wait(3, "loading", is_head=True),)


def test_a_claim_for_another_device_is_not_held_up() -> None:
    busy = record(1, "ready", {"cpu": 80}, leases=(1,))
    first = record(2, "waiting", {"cpu": 50})
    second = record(3, "waiting", {"cuda:0": 50})
    state = snapshot(busy, first, second, capacity={"cpu": 100, "cuda:0": 100})
    assert decide(state) == (Wait(2, "busy", is_head=True), Grant(3))


def test_what_can_never_fit_is_refused_even_behind_others() -> None:
    busy = record(1, "ready", {"cpu": 80}, leases=(1,))
    first = record(2, "waiting", {"cpu": 50})
    giant = record(3, "waiting", {"cpu": 101})
    _, refusal = decide(snapshot(busy, first, giant))
    assert isinstance(refusal, Refuse)
    assert isinstance(refusal.error, ModelTooLarge)


def test_a_claim_that_only_pinned_workers_stand_against_is_refused_naming_them() -> None:
    pinned = record(1, "ready", {"cpu": 80}, is_pinned=True)
    claim = record(2, "waiting", {"cpu": 50})
    (refusal,) = decide(snapshot(pinned, claim))
    assert isinstance(refusal, Refuse)
    assert type(refusal.error) is CapacityError
    assert "ai/m1" in refusal.error.message


def test_a_closed_worker_reopens_when_its_claim_is_gone() -> None:
    closed = record(1, "draining", {"cpu": 80}, leases=(1,), closing_for=7)
    assert decide(snapshot(closed)) == (Reopen(1),)


def test_a_closed_worker_does_not_reopen_beside_its_successor() -> None:
    closed = record(1, "draining", {"cpu": 40}, leases=(1,), closing_for=7, spec=spec("x"))
    successor = record(2, "ready", {"cpu": 40}, spec=spec("x"))
    assert decide(snapshot(closed, successor)) == ()


def test_idle_workers_expire_by_their_own_keep_alive() -> None:
    gone = record(1, "ready", {"cpu": 1}, keep_alive_s=60.0, last_used=NOW - 60)
    later = record(2, "ready", {"cpu": 1}, keep_alive_s=60.0, last_used=NOW - 59)
    kept = record(3, "ready", {"cpu": 1}, keep_alive_s=-1.0)
    pinned = record(4, "ready", {"cpu": 1}, keep_alive_s=0.0, is_pinned=True)
    state = snapshot(gone, later, kept, pinned)
    assert decide(state) == (Stop(1, "idle"),)
    assert next_deadline(state) == NOW + 1
