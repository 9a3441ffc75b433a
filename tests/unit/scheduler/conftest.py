"""Builders of specs and records, and a world in which nothing is real but the scheduler."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from runner.api.backend import Budget, DeviceMemory, LoadConfig, MemoryEstimate, Placement
from runner.api.engine import EngineStats
from runner.api.model import Model, ModelHeader
from runner.scheduler import Limits, LoadSpec, Scheduler
from runner.scheduler.state import Record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from runner.api.errors import RunnerError

PLACEMENT = Placement(context_size=4096, kv_cells=8192, max_sequences=2)


def spec(name: str = "a", *, backend: str = "fake", pinned: bool = False) -> LoadSpec:
    header = ModelHeader(
        format="gguf", version=3, architecture="llama", metadata={}, tensors=(), file_bytes=1
    )
    model = Model(id=f"sha256:{name}", name=f"ai/{name}", header=header)
    return LoadSpec(
        key=f"{backend}/{name}",
        backend=backend,
        model=model,
        config=LoadConfig(),
        is_pinned=pinned,
    )


def estimate(**sizes: int) -> MemoryEstimate:
    devices = tuple(DeviceMemory(device=d, weights=size) for d, size in sizes.items())
    return MemoryEstimate(devices=devices, placement=PLACEMENT)


def record(worker_id: int, phase: str, need: Mapping[str, int], **fields: Any) -> Record:
    fields = {"created_at": 0.0, "last_used": 0.0, "keep_alive_s": -1.0} | fields
    fields.setdefault("spec", spec(f"m{worker_id}"))
    return Record(id=worker_id, phase=phase, need=dict(need), **fields)


class FakeExit:
    def describe(self) -> str:
        return "was killed by SIGKILL"


class FakeWorker:
    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.stats = EngineStats(active=1)
        self.exit: FakeExit | None = None
        self._exited = anyio.Event()

    async def wait_exited(self) -> None:
        await self._exited.wait()

    def die(self) -> None:
        self.exit = FakeExit()
        self._exited.set()


class FakeEffects:
    """A world whose clock, loads and stops the test controls."""

    def __init__(self, capacity: Mapping[str, int] | None = None) -> None:
        self.capacity = dict(capacity or {"cpu": 100})
        #: Bytes on the cpu by model name; 10 when not named.
        self.sizes: dict[str, int] = {}
        #: Models whose load or stop waits for :meth:`let_go`.
        self.held: set[str] = set()
        self.errors: dict[str, Exception] = {}
        self.estimate_errors: dict[str, Exception] = {}
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.stopped: list[str] = []
        self.workers: list[FakeWorker] = []
        self.progress: dict[str, Callable[[float, str], None]] = {}
        self._shift_s = 0.0
        self._changed = anyio.Event()

    def now(self) -> float:
        return anyio.current_time() + self._shift_s

    async def advance(self, scheduler: Scheduler, seconds: float) -> None:
        """Let time pass between what has happened and what comes."""
        await scheduler.status()
        self._shift_s += seconds
        await scheduler.status()

    def budget(self) -> Budget:
        return Budget(devices=self.capacity)

    def let_go(self, name: str) -> None:
        self.held.discard(name)
        self._changed.set()
        self._changed = anyio.Event()

    def alive(self) -> list[str]:
        return sorted(worker.name for worker in self.workers if worker.exit is None)

    async def estimate(self, wanted: LoadSpec) -> MemoryEstimate:
        name = wanted.model.name
        await anyio.lowlevel.checkpoint()
        if name in self.estimate_errors:
            raise self.estimate_errors[name]
        return estimate(cpu=self.sizes.get(name, 10))

    async def start(
        self, wanted: LoadSpec, placement: Placement, progress: Callable[[float, str], None]
    ) -> FakeWorker:
        name = wanted.model.name
        assert placement == PLACEMENT
        self.started.append(name)
        self.progress[name] = progress
        try:
            await self._pass(name)
        except BaseException:
            self.aborted.append(name)
            raise
        if name in self.errors:
            raise self.errors[name]
        worker = FakeWorker(name, pid=1000 + len(self.started))
        self.workers.append(worker)
        return worker

    async def stop(self, worker: FakeWorker) -> None:
        self.stopped.append(worker.name)
        await self._pass(f"stop {worker.name}")
        worker.die()

    async def _pass(self, name: str) -> None:
        await anyio.lowlevel.checkpoint()
        while name in self.held:
            await self._changed.wait()


@pytest.fixture
def effects() -> FakeEffects:
    return FakeEffects()


@asynccontextmanager
async def running(effects: FakeEffects, **limits: Any) -> AsyncIterator[Scheduler]:
    """A scheduler that runs; at the end it has stopped everything."""
    scheduler = Scheduler(effects, Limits(**limits))  # type: ignore[arg-type] - the worker is a fake
    async with anyio.create_task_group() as tasks:
        await tasks.start(scheduler.run)
        try:
            yield scheduler
        finally:
            tasks.cancel_scope.cancel()
    assert effects.alive() == []


async def load(scheduler: Scheduler, wanted: LoadSpec, **options: Any) -> None:
    """Lease a worker, and give it back when it is ready."""
    async with scheduler.lease(wanted, **options) as lease:
        await lease.worker()


async def states(scheduler: Scheduler) -> dict[str, str]:
    return {row.model_name: row.state for row in await scheduler.status()}


async def failure(scheduler: Scheduler, wanted: LoadSpec) -> RunnerError:
    """The error that a lease ends with."""
    from runner.api.errors import RunnerError

    with pytest.raises(RunnerError) as caught:
        await load(scheduler, wanted)
    return caught.value
