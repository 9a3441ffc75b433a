"""Everything impure the scheduler needs, as one seam; and the real thing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, Self

import anyio
import msgspec

from runner.api.backend import Budget
from runner.hardware.machine import read_machine
from runner.scheduler.backends import call_hook
from runner.worker.environment import worker_environment
from runner.worker.process import run_worker
from runner.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from anyio.abc import TaskGroup, TaskStatus

    from runner.api.backend import Machine, MemoryEstimate, Placement
    from runner.plugins import Backend, Plugins
    from runner.scheduler.state import LoadSpec
    from runner.worker.worker import Worker

__all__ = ["Effects", "WorkerEffects", "reserve_bytes"]


class Effects(Protocol):
    """What the scheduler does to the world, and learns from it."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    def budget(self) -> Budget:
        """What all workers may hold together, by device. Called in a thread."""

    async def estimate(self, spec: LoadSpec) -> MemoryEstimate:
        """What a worker will need.

        :raises RunnerError: the backend cannot say, or cannot run this.
        """

    async def start(
        self, spec: LoadSpec, placement: Placement, progress: Callable[[float, str], None]
    ) -> Worker:
        """Start a worker and wait until it is ready.

        When this raises, or is cancelled, no process is left.
        """

    async def stop(self, worker: Worker) -> None:
        """End a worker; returns when its process is gone."""


def reserve_bytes(total_bytes: int) -> int:
    """Memory left to the system and other programs.

    10 % of the machine, at least 1 GiB and at most 8 GiB; never more than half (containers).
    """
    return min(max(2**30, total_bytes // 10), 8 * 2**30, total_bytes // 2)


class WorkerEffects:
    """Real workers, plugins and hardware. An async context manager: it owns the workers' tasks.

    :param environ: the daemon's environment; a worker gets the part its backend declares.
    :param memory_limit_bytes: what all models may use together; None is the machine's less
        :func:`reserve_bytes`. Cards count what was free on them when no worker was running.
    :param stall_s: how long a load may show no progress.
    :param log: takes the lines that workers write.
    """

    def __init__(
        self,
        plugins: Plugins,
        *,
        environ: Mapping[str, str],
        stall_s: float,
        log: Callable[[str], None],
        memory_limit_bytes: int | None = None,
    ) -> None:
        self._plugins = plugins
        self._environ = environ
        self._stall_s = stall_s
        self._log = log
        self._memory_limit_bytes = memory_limit_bytes
        self._tasks: TaskGroup | None = None
        self._n_running = 0
        self._card_bytes: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        tasks.cancel_scope.cancel()
        return await tasks.__aexit__(exc_type, exc, traceback)

    def now(self) -> float:
        """The event loop's clock."""
        return anyio.current_time()

    def budget(self) -> Budget:
        """Read the machine (some ms; call it in a thread)."""
        return self._budget_of(read_machine())

    async def estimate(self, spec: LoadSpec) -> MemoryEstimate:
        """Ask the backend's hook, in a thread that is abandoned when it blocks."""
        backend = self._plugins.backend(spec.backend)
        return await call_hook(backend, partial(self._estimate, backend, spec))

    async def start(
        self, spec: LoadSpec, placement: Placement, progress: Callable[[float, str], None]
    ) -> Worker:
        """Run the worker in a task of its own; it outlives this call."""
        if self._tasks is None:
            raise RuntimeError("WorkerEffects is used outside its `async with`")
        worker: Worker = await self._tasks.start(partial(self._run, spec, placement, progress))
        return worker

    async def stop(self, worker: Worker) -> None:
        """Ask, terminate, kill."""
        await worker.stop()

    async def _run(
        self,
        spec: LoadSpec,
        placement: Placement,
        progress: Callable[[float, str], None],
        *,
        task_status: TaskStatus[Worker],
    ) -> None:
        backend = self._plugins.backend(spec.backend)
        self._n_running += 1
        try:
            await run_worker(
                WorkerSpec(
                    backend=spec.backend,
                    model=spec.model,
                    context_size=spec.config.context_size,
                    max_sequences=spec.config.max_sequences,
                    options=msgspec.to_builtins(spec.config.options, enc_hook=str),
                    placement=placement,
                    backend_version=backend.version,
                ),
                environment=worker_environment(backend.info.environment, self._environ),
                stall_s=self._stall_s,
                log=self._log,
                progress=progress,
                task_status=task_status,
            )
        finally:
            self._n_running -= 1

    def _estimate(self, backend: Backend, spec: LoadSpec) -> MemoryEstimate:
        machine = read_machine()
        return backend.estimate_memory(
            model=spec.model, config=spec.config, machine=machine, budget=self._budget_of(machine)
        )

    def _budget_of(self, machine: Machine) -> Budget:
        total = machine.memory.total_bytes
        limit = self._memory_limit_bytes
        devices = {"cpu": total - reserve_bytes(total) if limit is None else min(limit, total)}
        for gpu in machine.gpus:
            # While our workers run, what is free is not what they may hold together.
            if self._n_running == 0 or gpu.device not in self._card_bytes:
                self._card_bytes[gpu.device] = gpu.free_bytes
            devices[gpu.device] = self._card_bytes[gpu.device]
        return Budget(devices=devices)
