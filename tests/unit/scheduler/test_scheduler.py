from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from runner.api.errors import (
    ConflictError,
    ModelTooLarge,
    PluginError,
    QueueFull,
    RequestError,
    ShuttingDown,
    WorkerDied,
    WorkerStartFailed,
)
from runner.scheduler import Limits, Scheduler
from runner.testing.waiting import wait_until_async

from .conftest import (
    PLACEMENT,
    FakeEffects,
    failure,
    load,
    running,
    spec,
    states,
)

if TYPE_CHECKING:
    from runner.scheduler import Lease

pytestmark = pytest.mark.anyio


async def _hold(scheduler: Scheduler, name: str, leave: anyio.Event) -> None:
    async with scheduler.lease(spec(name)) as lease:
        await lease.worker()
        await leave.wait()


async def test_ten_leases_at_once_share_one_load(effects: FakeEffects) -> None:
    effects.held.add("ai/a")
    workers = set()

    async def ask(scheduler: Scheduler) -> None:
        async with scheduler.lease(spec("a")) as lease:
            workers.add(await lease.worker())

    async with running(effects) as scheduler, anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(ask, scheduler)
        await wait_until_async(lambda: effects.started)
        (row,) = await scheduler.status()
        assert (row.state, row.leases, row.waiting) == ("loading", 0, 10)
        effects.let_go("ai/a")
    assert effects.started == ["ai/a"]
    assert len(workers) == 1


async def test_a_load_goes_on_when_the_client_that_asked_first_leaves(
    effects: FakeEffects,
) -> None:
    effects.held.add("ai/a")
    async with running(effects) as scheduler:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load, scheduler, spec("a"))
            await wait_until_async(lambda: effects.started)
            tasks.cancel_scope.cancel()
        assert not await scheduler.in_use("sha256:a")
        effects.let_go("ai/a")
        await wait_until_async(lambda: effects.workers)
        await load(scheduler, spec("a"))
    assert effects.started == ["ai/a"]
    assert effects.aborted == []


async def test_a_lease_tells_what_is_happening(effects: FakeEffects) -> None:
    effects.held.add("ai/a")
    async with running(effects) as scheduler, scheduler.lease(spec("a")) as lease:
        await wait_until_async(lambda: lease.note == "loading")
        effects.progress["ai/a"](0.4, "")
        await wait_until_async(lambda: lease.note == "loading 40 %")
        effects.let_go("ai/a")
        await lease.worker()
        assert lease.note == "ready"


async def test_an_idle_worker_is_unloaded_after_its_keep_alive(effects: FakeEffects) -> None:
    async with running(effects, keep_alive_s=300.0) as scheduler:
        await load(scheduler, spec("a"))
        await effects.advance(scheduler, 299.0)
        assert await states(scheduler) == {"ai/a": "ready"}
        await effects.advance(scheduler, 2.0)
        await wait_until_async(lambda: effects.alive() == [])
        assert await scheduler.status() == ()


async def test_the_scheduler_wakes_by_itself_when_a_keep_alive_ends(effects: FakeEffects) -> None:
    async with running(effects, keep_alive_s=0.05) as scheduler:
        await load(scheduler, spec("a"))
        await wait_until_async(lambda: effects.stopped == ["ai/a"])


async def test_keep_alive_zero_unloads_after_the_last_lease(effects: FakeEffects) -> None:
    async with running(effects) as scheduler:
        async with scheduler.lease(spec("a"), keep_alive_s=0.0) as lease:
            await lease.worker()
            await load(scheduler, spec("a"), keep_alive_s=0.0)
            assert effects.stopped == []
        await wait_until_async(lambda: effects.stopped == ["ai/a"])


async def test_keep_alive_minus_one_never_expires(effects: FakeEffects) -> None:
    async with running(effects) as scheduler:
        await load(scheduler, spec("a"), keep_alive_s=-1.0)
        await effects.advance(scheduler, 10**7)
        assert await states(scheduler) == {"ai/a": "ready"}


async def test_eviction_takes_one_worker_and_not_all(effects: FakeEffects) -> None:
    effects.sizes = dict.fromkeys(["ai/a", "ai/b", "ai/c"], 30) | {"ai/d": 40}
    async with running(effects) as scheduler:
        for name in "abc":
            await load(scheduler, spec(name))
            await effects.advance(scheduler, 10.0)
        await load(scheduler, spec("d"))
        assert effects.stopped == ["ai/a"]
        assert effects.alive() == ["ai/b", "ai/c", "ai/d"]


async def test_memory_is_granted_again_only_when_the_process_is_gone(effects: FakeEffects) -> None:
    effects.sizes = {"ai/a": 80, "ai/b": 80}
    effects.held.add("stop ai/a")
    async with running(effects) as scheduler:
        await load(scheduler, spec("a"))
        async with scheduler.lease(spec("b")) as lease:
            await wait_until_async(lambda: effects.stopped == ["ai/a"])
            assert await states(scheduler) == {"ai/a": "closing", "ai/b": "waiting"}
            assert lease.note == "waiting for idle models to unload"
            effects.let_go("stop ai/a")
            await lease.worker()


async def test_a_slow_stop_holds_nobody_else_up(effects: FakeEffects) -> None:
    effects.held.add("stop ai/a")
    async with running(effects) as scheduler:
        await load(scheduler, spec("a"))
        assert await scheduler.unload(model_ids=["sha256:a"]) == 1
        await load(scheduler, spec("b"))
        await load(scheduler, spec("a"))
        assert effects.started == ["ai/a", "ai/b", "ai/a"]
        effects.let_go("stop ai/a")


async def test_a_starving_head_closes_its_victim_and_new_leases_queue_behind(
    effects: FakeEffects,
) -> None:
    effects.sizes = {"ai/a": 80, "ai/b": 80}
    leave_a, leave_b = anyio.Event(), anyio.Event()
    async with running(effects, starvation_s=20.0) as scheduler, anyio.create_task_group() as tasks:
        tasks.start_soon(_hold, scheduler, "a", leave_a)
        await wait_until_async(lambda: effects.workers)
        await load(scheduler, spec("c"))
        tasks.start_soon(_hold, scheduler, "b", leave_b)
        await anyio.wait_all_tasks_blocked()
        await effects.advance(scheduler, 19.0)
        assert (await states(scheduler))["ai/a"] == "ready"
        await effects.advance(scheduler, 2.0)
        assert (await states(scheduler))["ai/a"] == "closing"
        async with scheduler.lease(spec("a")) as late:
            await scheduler.status()
            assert effects.alive() == ["ai/a", "ai/c"]
            leave_a.set()
            await wait_until_async(lambda: effects.started[-1] == "ai/b")
            leave_b.set()
            await late.worker()
    assert effects.started == ["ai/a", "ai/c", "ai/b", "ai/a"]


async def test_unload_ends_an_idle_worker_at_once_and_counts_it(effects: FakeEffects) -> None:
    async with running(effects) as scheduler:
        await load(scheduler, spec("a"))
        await load(scheduler, spec("b", backend="other"))
        assert await scheduler.unload(backend="nobody") == 0
        assert await scheduler.unload(backend="other") == 1
        assert await scheduler.unload(model_ids=["sha256:b"]) == 0
        assert await scheduler.unload() == 1
        await wait_until_async(lambda: effects.alive() == [])


async def test_unload_aborts_a_load_and_tells_those_who_wait(effects: FakeEffects) -> None:
    effects.held.add("ai/a")
    async with running(effects) as scheduler, scheduler.lease(spec("a")) as lease:
        await wait_until_async(lambda: effects.started)
        assert await scheduler.unload(model_ids=["sha256:a"]) == 1
        with pytest.raises(ConflictError, match="ai/a was unloaded"):
            await lease.worker()
        await wait_until_async(lambda: effects.aborted == ["ai/a"])
        effects.let_go("ai/a")
        await load(scheduler, spec("a"))


async def test_unload_drains_a_busy_worker(effects: FakeEffects) -> None:
    async with running(effects) as scheduler:
        async with scheduler.lease(spec("a")) as lease:
            await lease.worker()
            assert await scheduler.unload() == 1
            assert await states(scheduler) == {"ai/a": "closing"}
            assert await scheduler.in_use("sha256:a")
            assert effects.stopped == []
        await wait_until_async(lambda: effects.stopped == ["ai/a"])


async def test_a_failed_load_fails_all_who_wait_and_the_next_request_tries_again(
    effects: FakeEffects,
) -> None:
    effects.errors["ai/a"] = WorkerStartFailed("the weights are no weights")
    effects.held.add("ai/a")
    errors = []

    async def ask(scheduler: Scheduler) -> None:
        errors.append(await failure(scheduler, spec("a")))

    async with running(effects) as scheduler:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask, scheduler)
            await wait_until_async(lambda: effects.started)
            effects.let_go("ai/a")
        assert {error.message for error in errors} == {"the weights are no weights"}
        assert len({id(error) for error in errors}) == 3
        assert await scheduler.status() == ()
        effects.errors.clear()
        await load(scheduler, spec("a"))


async def test_an_unexpected_error_of_a_load_stays_in_that_load(effects: FakeEffects) -> None:
    effects.errors["ai/a"] = ExceptionGroup("several", [ValueError("surprise")])
    async with running(effects) as scheduler:
        error = await failure(scheduler, spec("a"))
        assert isinstance(error, WorkerStartFailed)
        assert "surprise" in error.message
        await load(scheduler, spec("b"))


async def test_a_failed_estimate_is_the_clients_error(effects: FakeEffects) -> None:
    effects.estimate_errors["ai/a"] = RequestError("cannot run this architecture")
    async with running(effects) as scheduler:
        for _ in range(5):
            assert isinstance(await failure(scheduler, spec("a")), RequestError)


async def test_a_crash_loop_backs_off_and_says_so(effects: FakeEffects) -> None:
    effects.errors["ai/a"] = WorkerStartFailed("it broke")
    async with running(effects) as scheduler:
        for _ in range(3):
            assert (await failure(scheduler, spec("a"))).message == "it broke"
        error = await failure(scheduler, spec("a"))
        assert isinstance(error, WorkerStartFailed)
        assert "failed 3 times in a row and will be tried again in 1 s" in error.message
        assert "the last error: it broke" in error.message
        assert len(effects.started) == 3
        await load(scheduler, spec("b"))
        await effects.advance(scheduler, 1.0)
        effects.errors.clear()
        await load(scheduler, spec("a"))


async def test_a_hanging_plugin_counts_as_a_crash_loop(effects: FakeEffects) -> None:
    effects.estimate_errors["ai/a"] = PluginError("it hangs")
    async with running(effects) as scheduler:
        messages = [(await failure(scheduler, spec("a"))).message for _ in range(4)]
        assert messages[2] == "it hangs"
        assert "tried again" in messages[3]


async def test_a_worker_that_dies_is_forgotten_and_the_next_request_starts_a_new_one(
    effects: FakeEffects,
) -> None:
    async with running(effects) as scheduler:
        async with scheduler.lease(spec("a")) as lease:
            await lease.worker()
            effects.workers[0].die()
            await wait_until_async(lambda: lease.note == "failed")
            with pytest.raises(WorkerDied, match="the worker of ai/a was killed by SIGKILL"):
                await lease.worker()
            await load(scheduler, spec("a"))
        assert effects.started == ["ai/a", "ai/a"]


async def test_too_large_a_model_is_refused_at_once(effects: FakeEffects) -> None:
    effects.sizes["ai/a"] = 101
    async with running(effects) as scheduler:
        await load(scheduler, spec("b"))
        assert isinstance(await failure(scheduler, spec("a")), ModelTooLarge)
        assert effects.alive() == ["ai/b"]


async def test_a_full_queue_refuses(effects: FakeEffects) -> None:
    effects.held.add("ai/a")
    async with running(effects, queue_limit=1) as scheduler, scheduler.lease(spec("a")) as lease:
        assert isinstance(await failure(scheduler, spec("a")), QueueFull)
        effects.let_go("ai/a")
        await lease.worker()


async def test_drain_waits_for_running_leases_and_refuses_new_ones(effects: FakeEffects) -> None:
    leave = anyio.Event()
    async with running(effects) as scheduler, anyio.create_task_group() as tasks:
        tasks.start_soon(_hold, scheduler, "a", leave)
        await wait_until_async(lambda: effects.workers)
        await load(scheduler, spec("b"))
        tasks.start_soon(scheduler.drain, 10.0)
        await anyio.wait_all_tasks_blocked()
        assert isinstance(await failure(scheduler, spec("b")), ShuttingDown)
        assert effects.stopped == []
        leave.set()
        await wait_until_async(lambda: effects.alive() == [])


async def test_drain_stops_busy_workers_when_its_time_is_up(effects: FakeEffects) -> None:
    async with running(effects) as scheduler, scheduler.lease(spec("a")) as lease:
        await lease.worker()
        await scheduler.drain(0.01)
        assert effects.alive() == []
        assert await scheduler.status() == ()
        with pytest.raises(ShuttingDown):
            await lease.worker()


async def test_a_cancelled_scheduler_leaves_no_process_and_no_waiter(effects: FakeEffects) -> None:
    effects.held.add("ai/b")
    leases: list[Lease] = []
    errors = []

    async def wait(scheduler: Scheduler) -> None:
        async with scheduler.lease(spec("b")) as lease:
            leases.append(lease)
            with pytest.raises(ShuttingDown):
                await lease.worker()
            errors.append(lease.note)

    async with anyio.create_task_group() as tasks, running(effects) as scheduler:
        await load(scheduler, spec("a"))
        tasks.start_soon(wait, scheduler)
        await wait_until_async(lambda: "ai/b" in effects.started)
    assert errors == ["failed"]
    assert effects.aborted == ["ai/b"]
    assert effects.stopped == ["ai/a"]


async def test_without_its_task_the_scheduler_refuses_and_answers_nothing(
    effects: FakeEffects,
) -> None:
    scheduler = Scheduler(effects, Limits())  # type: ignore[arg-type] - the worker is a fake
    assert isinstance(await failure(scheduler, spec("a")), ShuttingDown)
    assert await scheduler.status() == ()
    assert await scheduler.unload() == 0
    assert not await scheduler.in_use("sha256:a")
    await scheduler.drain(1.0)


async def test_status_tells_a_worker_in_full(effects: FakeEffects) -> None:
    async with running(effects) as scheduler, scheduler.lease(spec("a")) as lease:
        worker = await lease.worker()
        (row,) = await scheduler.status()
        assert (row.model_name, row.backend, row.state) == ("ai/a", "fake", "ready")
        assert (row.pid, row.leases, row.waiting) == (worker.pid, 1, 0)
        assert row.estimate == {"cpu": 10}
        assert row.placement == PLACEMENT
        assert row.stats is not None
        assert row.stats.active == 1
        assert row.last_used_unix is not None
