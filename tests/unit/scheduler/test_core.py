"""The scheduler's core in a simulated world: every interleaving of loads, crashes and requests."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runner.api.backend import Budget
from runner.api.errors import CapacityError, ModelTooLarge, RunnerError, WorkerStartFailed
from runner.scheduler import Limits, messages
from runner.scheduler.core import SchedulerCore
from runner.scheduler.policy import held_by_device
from runner.scheduler.state import HOLDING

from .conftest import estimate, spec

NAMES = "abcde"
CAPACITY = 100
STARVATION_S = 20.0


class World(RuleBasedStateMachine):
    """Performs the core's commands in any order and at any time, and checks what must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.core = SchedulerCore(
            Limits(keep_alive_s=60.0, queue_limit=12, starvation_s=STARVATION_S)
        )
        self.now = 0.0
        self.sizes = dict.fromkeys(NAMES, 30)
        self.estimating: dict[int, str] = {}
        self.loading: set[int] = set()
        self.aborting: set[int] = set()
        self.alive: set[int] = set()
        self.stopping: set[int] = set()
        self.waiting: set[int] = set()
        #: lease -> worker
        self.running: dict[int, int] = {}
        self.failed: dict[int, RunnerError] = {}
        self.n_leases = 0
        self.is_shut = False

    def send(self, message: messages.Message) -> None:
        for command in self.core.handle(message, self.now):
            self.perform(command)

    def perform(self, command: messages.Command) -> None:
        match command:
            case messages.StartEstimate(worker_id=worker_id, spec=wanted):
                self.estimating[worker_id] = wanted.model.name[-1]
            case messages.AbortEstimate(worker_id):
                del self.estimating[worker_id]
            case messages.StartLoad(worker_id=worker_id):
                self.loading.add(worker_id)
            case messages.AbortLoad(worker_id):
                self.loading.remove(worker_id)
                self.aborting.add(worker_id)
            case messages.StopWorker(worker_id=worker_id, cause=cause):
                assert worker_id in self.alive, "only what is ready is stopped"
                users = [lease for lease, user in self.running.items() if user == worker_id]
                assert cause == "shutdown" or not users, "nothing leased is stopped"
                self.stopping.add(worker_id)
            case messages.Resolve(lease_id, worker_id):
                self.waiting.remove(lease_id)
                assert worker_id in self.alive - self.stopping, "no lease on a dead worker"
                self.running[lease_id] = worker_id
            case messages.Fail(lease_id, error):
                self.waiting.discard(lease_id)
                self.running.pop(lease_id, None)
                self.failed[lease_id] = error

    # What users do

    @initialize(sizes=st.lists(st.integers(1, 60), min_size=5, max_size=5))
    def choose_sizes(self, sizes: list[int]) -> None:
        self.sizes = dict(zip(NAMES, sizes, strict=True))
        self.sizes["e"] += 60  # often more than there is

    @rule(
        name=st.sampled_from(NAMES),
        keep_alive_s=st.sampled_from([None, None, 0.0, -1.0, 5.0]),
    )
    def request(self, name: str, keep_alive_s: float | None) -> None:
        self.n_leases += 1
        self.waiting.add(self.n_leases)
        self.send(
            messages.Request(lease_id=self.n_leases, spec=spec(name), keep_alive_s=keep_alive_s)
        )

    @rule(data=st.data(), of_waiting=st.booleans())
    def release(self, data: st.DataObject, *, of_waiting: bool) -> None:
        leases = sorted(self.waiting if of_waiting else self.running)
        if leases:
            self.give_back(data.draw(st.sampled_from(leases)))

    def give_back(self, lease_id: int) -> None:
        self.waiting.discard(lease_id)
        self.running.pop(lease_id, None)
        self.send(messages.Release(lease_id))

    @precondition(lambda self: self.loading or self.running)
    @rule(names=st.sets(st.sampled_from(NAMES), min_size=1, max_size=2))
    def unload(self, names: set[str]) -> None:
        ids = frozenset(f"sha256:{name}" for name in names)
        self.send(messages.Unload(ticket=0, model_ids=ids))

    # What the world does

    @rule(seconds=st.floats(0.0, 40.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.send(messages.Tick())

    @precondition(lambda self: self.estimating)
    @rule(data=st.data(), is_known=st.integers(0, 9).map(bool))
    def end_estimate(self, data: st.DataObject, *, is_known: bool) -> None:
        worker_id = data.draw(st.sampled_from(sorted(self.estimating)))
        if is_known:
            self.estimated(worker_id)
        else:
            del self.estimating[worker_id]
            error = RunnerError("no estimate")
            self.send(messages.EstimateFailed(worker_id=worker_id, error=error))

    def estimated(self, worker_id: int) -> None:
        size = self.sizes[self.estimating.pop(worker_id)]
        self.send(
            messages.Estimated(
                worker_id=worker_id,
                estimate=estimate(cpu=size),
                budget=Budget(devices={"cpu": CAPACITY}),
            )
        )

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), is_good=st.integers(0, 3).map(bool))
    def end_load(self, data: st.DataObject, *, is_good: bool) -> None:
        worker_id = data.draw(st.sampled_from(sorted(self.loading)))
        if is_good:
            self.loaded(worker_id)
        else:
            self.loading.remove(worker_id)
            error = WorkerStartFailed("no")
            self.send(messages.Gone(worker_id=worker_id, error=error))

    def loaded(self, worker_id: int) -> None:
        self.loading.remove(worker_id)
        self.alive.add(worker_id)
        self.send(messages.Loaded(worker_id))

    @precondition(lambda self: self.aborting)
    @rule(data=st.data(), is_late=st.booleans())
    def end_abort(self, data: st.DataObject, *, is_late: bool) -> None:
        """An aborted load ends; sometimes it had become ready just before."""
        worker_id = data.draw(st.sampled_from(sorted(self.aborting)))
        self.aborting.remove(worker_id)
        if is_late:
            self.alive.add(worker_id)
            self.send(messages.Loaded(worker_id))
        else:
            self.send(messages.Gone(worker_id=worker_id))

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def end_stop(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.stopping))))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.alive))))

    def die(self, worker_id: int) -> None:
        self.alive.discard(worker_id)
        self.stopping.discard(worker_id)
        users = [lease for lease, user in self.running.items() if user == worker_id]
        self.send(messages.Gone(worker_id=worker_id))
        assert all(lease in self.failed for lease in users)

    # What must hold

    @invariant()
    def the_ledger_is_never_over_capacity(self) -> None:
        assert held_by_device(self.core.workers).get("cpu", 0) <= CAPACITY

    @invariant()
    def memory_is_reserved_as_long_as_a_process_may_live(self) -> None:
        holding = {worker.id for worker in self.core.workers if worker.phase in HOLDING}
        assert holding == self.loading | self.aborting | self.alive

    @invariant()
    def every_lease_is_known_to_both_sides(self) -> None:
        known = [lease for worker in self.core.workers for lease in worker.leases]
        assert sorted(known) == sorted(self.waiting | self.running.keys())
        assert self.core.n_leases == len(known)

    @invariant()
    def one_key_has_one_worker_that_takes_leases(self) -> None:
        accepting = [
            worker.spec.key
            for worker in self.core.workers
            if worker.phase in {"estimating", "waiting", "loading", "ready"}
        ]
        assert len(accepting) == len(set(accepting))

    @invariant()
    def the_queue_is_bounded(self) -> None:
        assert len(self.waiting) <= 12 + len(self.running)

    @invariant()
    def nothing_is_left_undecided(self) -> None:
        deadline = self.core.next_deadline()
        assert deadline is None or deadline > self.now

    def teardown(self) -> None:
        """Nobody starves: with users who never leave a worker idle, every claim still ends."""
        if self.core.workers:
            self._serve_everybody()
        self.send(messages.StopAll())
        assert not self.waiting
        assert not self.running
        self._finish_work()
        assert self.core.workers == ()

    def _serve_everybody(self) -> None:
        claims = set(self.waiting)
        for _ in range(4 * len(NAMES)):
            self._finish_work()
            self._use_everything()
            self.now += STARVATION_S
            self.send(messages.Tick())
            if not claims & self.waiting:
                break
        assert not claims & self.waiting

    def _finish_work(self) -> None:
        while self.estimating or self.loading or self.aborting or self.stopping:
            for worker_id in sorted(self.estimating):
                if worker_id in self.estimating:
                    self.estimated(worker_id)
            for worker_id in sorted(self.loading):
                if worker_id in self.loading:
                    self.loaded(worker_id)
            for worker_id in sorted(self.aborting):
                self.aborting.discard(worker_id)
                self.send(messages.Gone(worker_id=worker_id))
            for worker_id in sorted(self.stopping):
                self.die(worker_id)

    def _use_everything(self) -> None:
        """Each running lease ends, but only after another one of its model has been asked for."""
        for lease_id, worker_id in sorted(self.running.items()):
            name = next(w.spec.model.name[-1] for w in self.core.workers if w.id == worker_id)
            self.request(name, None)
            self.give_back(lease_id)


World.TestCase.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)
TestWorld: Any = World.TestCase


def _core(**limits: Any) -> SchedulerCore:
    return SchedulerCore(Limits(**limits))


def _load(core: SchedulerCore, lease_id: int, name: str, size: int, now: float = 0.0) -> int:
    core.handle(messages.Request(lease_id=lease_id, spec=spec(name)), now)
    worker_id = core.workers[-1].id
    _estimated(core, worker_id, size, now)
    core.handle(messages.Loaded(worker_id), now)
    return worker_id


def _estimated(
    core: SchedulerCore, worker_id: int, size: int, now: float = 0.0
) -> list[messages.Command]:
    message = messages.Estimated(
        worker_id=worker_id,
        estimate=estimate(cpu=size),
        budget=Budget(devices={"cpu": CAPACITY}),
    )
    return core.handle(message, now)


def test_a_claim_nobody_waits_for_is_dropped() -> None:
    core = _core()
    core.handle(messages.Request(lease_id=1, spec=spec("a")), 0.0)
    commands = core.handle(messages.Release(1), 0.0)
    assert commands == [messages.AbortEstimate(1)]
    assert core.workers == ()


def test_a_late_estimate_of_a_dropped_claim_is_ignored() -> None:
    core = _core()
    core.handle(messages.Request(lease_id=1, spec=spec("a")), 0.0)
    core.handle(messages.Release(1), 0.0)
    assert _estimated(core, 1, 10) == []


def test_a_closed_worker_takes_its_waiting_leases_back_when_the_claim_gives_up() -> None:
    core = _core(starvation_s=20.0)
    _load(core, 1, "a", 80)
    core.handle(messages.Request(lease_id=2, spec=spec("b")), 0.0)
    _estimated(core, 2, 80)
    core.handle(messages.Tick(), 20.0)
    assert core.workers[0].phase == "draining"
    core.handle(messages.Request(lease_id=3, spec=spec("a")), 21.0)
    assert [worker.phase for worker in core.workers] == ["draining", "waiting", "estimating"]
    commands = core.handle(messages.Release(2), 22.0)
    assert messages.Resolve(3, 1) in commands
    assert [(worker.phase, worker.leases) for worker in core.workers] == [("ready", (1, 3))]


def test_a_request_for_a_closed_worker_queues_behind_the_starving_one() -> None:
    core = _core(starvation_s=20.0)
    _load(core, 1, "a", 80)
    core.handle(messages.Request(lease_id=2, spec=spec("b")), 0.0)
    _estimated(core, 2, 80)
    core.handle(messages.Tick(), 20.0)
    core.handle(messages.Request(lease_id=3, spec=spec("a")), 21.0)
    _estimated(core, 3, 80, 21.0)
    assert core.workers[2].wait == "behind"
    core.handle(messages.Release(1), 22.0)
    commands = core.handle(messages.Gone(worker_id=1), 23.0)
    assert [c.worker_id for c in commands if isinstance(c, messages.StartLoad)] == [2]


def test_a_full_queue_refuses_what_would_wait_but_not_what_is_ready() -> None:
    core = _core(queue_limit=2)
    _load(core, 1, "a", 10)
    core.handle(messages.Request(lease_id=2, spec=spec("b")), 0.0)
    core.handle(messages.Request(lease_id=3, spec=spec("b")), 0.0)
    for name, kind in (("b", messages.Fail), ("c", messages.Fail), ("a", messages.Resolve)):
        (command,) = core.handle(messages.Request(lease_id=4, spec=spec(name)), 0.0)
        assert isinstance(command, kind)


def test_a_lease_sets_the_keep_alive_and_the_next_one_resets_it() -> None:
    core = _core(keep_alive_s=300.0)
    _load(core, 1, "a", 10)
    core.handle(messages.Request(lease_id=2, spec=spec("a"), keep_alive_s=-1.0), 0.0)
    assert core.workers[0].keep_alive_s == -1.0
    core.handle(messages.Request(lease_id=3, spec=spec("a")), 0.0)
    assert core.workers[0].keep_alive_s == 300.0


def test_crashes_soon_after_ready_count_as_a_loop_and_late_ones_do_not() -> None:
    for uptime_s, is_refused in ((1.0, True), (31.0, False)):
        core, now = _core(), 0.0
        for lease_id in range(1, 4):
            worker_id = _load(core, lease_id, "a", 10, now)
            now += uptime_s
            core.handle(messages.Gone(worker_id=worker_id), now)
        commands = core.handle(messages.Request(lease_id=9, spec=spec("a")), now)
        assert any(isinstance(command, messages.Fail) for command in commands) is is_refused


def test_a_load_aborted_as_it_became_ready_is_stopped() -> None:
    core = _core()
    core.handle(messages.Request(lease_id=1, spec=spec("a")), 0.0)
    _estimated(core, 1, 10)
    assert messages.AbortLoad(1) in core.handle(messages.Unload(ticket=0), 0.0)
    (command,) = core.handle(messages.Loaded(1), 0.0)
    assert command == messages.StopWorker(worker_id=1, name="ai/a", cause="aborted")
    core.handle(messages.Gone(worker_id=1), 0.0)
    assert core.workers == ()


def test_an_estimate_beyond_the_machine_is_refused_with_the_sum() -> None:
    core = _core()
    core.handle(messages.Request(lease_id=1, spec=spec("a")), 0.0)
    (command,) = _estimated(core, 1, CAPACITY + 1)
    assert isinstance(command, messages.Fail)
    assert isinstance(command.error, ModelTooLarge | CapacityError)
    assert core.workers == ()
