"""The scheduler with real worker processes, running the fake backend."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest

from runner.api.backend import Cpu, Gpu, LoadConfig, Machine, MachineMemory
from runner.api.errors import PluginError, WorkerDied, WorkerStartFailed
from runner.api.events import ChoiceFinished, Delta, Finished
from runner.api.requests import ChatRequest, Message
from runner.config import load_settings, process_environment
from runner.plugins import Plugins
from runner.scheduler import Limits, LoadSpec, Scheduler, backends, load_key
from runner.scheduler.effects import WorkerEffects, reserve_bytes
from runner.testing.distribution import install_fake
from runner.testing.fake import FakeOptions, fake_model
from runner.testing.waiting import wait_until_async

from .conftest import failure, load, spec, states

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from runner.worker.worker import Worker

pytestmark = pytest.mark.anyio

GIB = 2**30


@pytest.fixture
def effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerEffects]:
    site = tmp_path / "site"
    install_fake(site)
    monkeypatch.syspath_prepend(site)
    own = {
        "RUNNER_HOME": str(tmp_path / "home"),
        "RUNNER_PLUGINS": "fake",
        "PYTHONPATH": str(site),
    }
    plugins = Plugins.load(load_settings(own))
    yield WorkerEffects(
        plugins, environ=process_environment() | own, stall_s=30.0, log=lambda line: None
    )
    assert psutil.Process().children(recursive=True) == []


@asynccontextmanager
async def _scheduler(effects: WorkerEffects) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(effects, Limits())
    async with effects, anyio.create_task_group() as tasks:
        await tasks.start(scheduler.run)
        try:
            yield scheduler
        finally:
            tasks.cancel_scope.cancel()


def _spec(name: str = "test/fake", **options: Any) -> LoadSpec:
    model = fake_model(name)
    config = LoadConfig(options=FakeOptions(**options))
    return LoadSpec(
        key=load_key("fake", "1.0", model.id, config), backend="fake", model=model, config=config
    )


async def _answer(worker: Worker) -> str:
    request = ChatRequest(id="1", messages=(Message(role="user", content="hi"),))
    text, is_finished = "", False
    async with worker.submit(request) as stream:
        async for events in stream:
            for event in events:
                if isinstance(event, Delta):
                    text += event.text
                assert isinstance(event, ChoiceFinished | Finished | Delta) or not text
                is_finished |= isinstance(event, Finished)
    assert is_finished
    return text


async def test_a_leased_worker_answers_and_unload_ends_its_process(effects: WorkerEffects) -> None:
    async with _scheduler(effects) as scheduler:
        async with scheduler.lease(_spec()) as lease:
            worker = await lease.worker()
            assert await _answer(worker) == "Hello, world!"
            (row,) = await scheduler.status()
            assert row.pid == worker.pid
            assert row.estimate == {"cpu": 1024 + 16 * 2**20}
        assert await scheduler.unload() == 1
        await wait_until_async(lambda: not worker.is_alive)
        await wait_until_async(lambda: not psutil.pid_exists(worker.pid))


async def test_the_end_of_the_scheduler_ends_its_workers(effects: WorkerEffects) -> None:
    async with _scheduler(effects) as scheduler:
        await load(scheduler, _spec("test/one"))
        await load(scheduler, _spec("test/two"))
        assert await states(scheduler) == {"test/one": "ready", "test/two": "ready"}


async def test_a_load_that_fails_tells_the_backends_words(effects: WorkerEffects) -> None:
    async with _scheduler(effects) as scheduler:
        error = await failure(scheduler, _spec(fail_load="no such tensor"))
        assert isinstance(error, WorkerStartFailed)
        assert "no such tensor" in error.message


async def test_unload_ends_a_load_under_way(effects: WorkerEffects) -> None:
    async with _scheduler(effects) as scheduler, scheduler.lease(_spec(load_s=60.0)) as lease:
        await wait_until_async(lambda: lease.note.startswith("loading 0 %"))
        assert await scheduler.unload() == 1
        await wait_until_async(lambda: not psutil.Process().children(recursive=True))


async def test_a_killed_worker_is_replaced_by_the_next_request(effects: WorkerEffects) -> None:
    async with _scheduler(effects) as scheduler:
        async with scheduler.lease(_spec()) as lease:
            worker = await lease.worker()
            os.kill(worker.pid, signal.SIGKILL)
            await wait_until_async(lambda: lease.note == "failed")
            with pytest.raises(WorkerDied, match="killed by SIGKILL"):
                await lease.worker()
        async with scheduler.lease(_spec()) as lease:
            assert await _answer(await lease.worker()) == "Hello, world!"


async def test_an_estimate_that_blocks_is_given_up_naming_the_plugin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "HOOK_DEADLINE_S", 0.05)
    release = threading.Event()
    backend = SimpleNamespace(
        info=SimpleNamespace(name="blocker"), estimate_memory=lambda **_: release.wait(30)
    )
    plugins: Any = SimpleNamespace(backend=lambda name: backend)
    effects = WorkerEffects(plugins, environ={}, stall_s=1.0, log=print)
    try:
        with pytest.raises(PluginError, match="blocker"):
            await effects.estimate(spec("a", backend="blocker"))
    finally:
        release.set()


def _machine(free_bytes: int) -> Machine:
    return Machine(
        os="linux",
        cpu=Cpu(model="", arch="x86_64", n_usable=1),
        memory=MachineMemory(total_bytes=32 * GIB, available_bytes=GIB),
        gpus=(Gpu(device="cuda:0", name="", total_bytes=24 * GIB, free_bytes=free_bytes),),
    )


def _effects(limit: int | None = None) -> WorkerEffects:
    plugins: Any = None
    return WorkerEffects(plugins, environ={}, stall_s=1.0, log=print, memory_limit_bytes=limit)


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(GIB, GIB // 2), (4 * GIB, GIB), (20 * GIB, 2 * GIB), (1024 * GIB, 8 * GIB)],
)
def test_the_reserve_suits_small_and_large_machines(total: int, reserve: int) -> None:
    assert reserve_bytes(total) == reserve


def test_a_memory_limit_replaces_the_reserve_but_not_the_machine() -> None:
    assert _effects(31 * GIB)._budget_of(_machine(GIB)).devices["cpu"] == 31 * GIB
    assert _effects(99 * GIB)._budget_of(_machine(GIB)).devices["cpu"] == 32 * GIB


def test_a_cards_budget_does_not_shrink_by_what_workers_hold() -> None:
    effects = _effects()
    assert effects._budget_of(_machine(20 * GIB)).devices["cuda:0"] == 20 * GIB
    effects._n_running = 1
    assert effects._budget_of(_machine(5 * GIB)).devices["cuda:0"] == 20 * GIB
    effects._n_running = 0
    assert effects._budget_of(_machine(18 * GIB)).devices["cuda:0"] == 18 * GIB
