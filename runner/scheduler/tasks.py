"""The scheduler's work outside: one task for each estimate, load and stop."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from runner.api.errors import RunnerError, WorkerDied, WorkerStartFailed
from runner.scheduler import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from runner.scheduler.effects import Effects
    from runner.scheduler.messages import Message
    from runner.scheduler.state import LoadSpec
    from runner.worker.worker import Worker

__all__ = ["WorkerTasks"]

_log = logging.getLogger(__name__)


class WorkerTasks:
    """Performs what takes time, each in a task of its own, and posts how it ended.

    No failure leaves a task: whatever an effect raises becomes a message. Only the scheduler's
    task calls the methods.
    """

    def __init__(self, effects: Effects, post: Callable[[Message], None]) -> None:
        self._effects = effects
        self._post = post
        self._scopes: dict[int, anyio.CancelScope] = {}
        #: Ready workers whose process lives.
        self.workers: dict[int, Worker] = {}

    def estimate(self, tasks: TaskGroup, command: messages.StartEstimate) -> None:
        """Find out what a worker needs."""
        scope = self._scopes[command.worker_id] = anyio.CancelScope()
        tasks.start_soon(self._estimate, command, scope)

    def load(self, tasks: TaskGroup, command: messages.StartLoad) -> None:
        """Start a worker and watch it to its end."""
        scope = self._scopes[command.worker_id] = anyio.CancelScope()
        tasks.start_soon(self._load, command, scope)

    def abort(self, worker_id: int) -> None:
        """End an estimate or a load under way."""
        if (scope := self._scopes.get(worker_id)) is not None:
            scope.cancel()

    def stop(self, tasks: TaskGroup, worker_id: int) -> None:
        """End a ready worker, if it has not ended by itself."""
        if (worker := self.workers.get(worker_id)) is not None:
            tasks.start_soon(self._stop, worker)

    async def stop_all(self, timeout_s: float) -> None:
        """End every worker, even if the caller is cancelled; returns when they are gone."""
        with anyio.move_on_after(timeout_s, shield=True):
            async with anyio.create_task_group() as tasks:
                for worker_id in tuple(self.workers):
                    self.stop(tasks, worker_id)
        self.workers.clear()

    async def _estimate(self, command: messages.StartEstimate, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                estimate = await self._effects.estimate(command.spec)
                budget = await anyio.to_thread.run_sync(self._effects.budget)
            except Exception as exc:  # noqa: BLE001 - one plugin's bug must not end the scheduler
                error = _explain(exc, command.spec, "its memory could not be estimated")
                self._post(messages.EstimateFailed(worker_id=command.worker_id, error=error))
            else:
                self._post(
                    messages.Estimated(
                        worker_id=command.worker_id, estimate=estimate, budget=budget
                    )
                )
        self._scopes.pop(command.worker_id, None)

    async def _load(self, command: messages.StartLoad, scope: anyio.CancelScope) -> None:
        worker_id = command.worker_id
        worker, error = None, None

        def report(fraction: float, note: str) -> None:
            self._post(messages.Progress(worker_id=worker_id, fraction=fraction, note=note))

        with scope:
            try:
                worker = await self._effects.start(command.spec, command.placement, report)
            except Exception as exc:  # noqa: BLE001 - one load's bug must not end the scheduler
                error = _explain(exc, command.spec, "its worker could not be started")
        self._scopes.pop(worker_id, None)
        if worker is not None:
            self.workers[worker_id] = worker
            self._post(messages.Loaded(worker_id))
            await worker.wait_exited()
            del self.workers[worker_id]
            error = _death(worker, command.spec)
        self._post(messages.Gone(worker_id=worker_id, error=error))

    async def _stop(self, worker: Worker) -> None:
        try:
            await self._effects.stop(worker)
        except Exception:  # noqa: BLE001 - its memory stays reserved until the process is gone
            _log.exception("cannot stop the worker with pid %s", worker.pid)


def _death(worker: Worker, spec: LoadSpec) -> WorkerDied:
    how = "ended" if worker.exit is None else worker.exit.describe()
    return WorkerDied(f"the worker of {spec.model.name} {how}")


def _explain(exc: Exception, spec: LoadSpec, what: str) -> RunnerError:
    while isinstance(exc, ExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, RunnerError):
        return exc
    _log.error("%s on %s: %s", spec.model.name, spec.backend, what, exc_info=exc)
    return WorkerStartFailed(
        f"{spec.model.name} on {spec.backend}: {what}: {type(exc).__name__}: {exc} "
        "(a bug; the daemon's log has the traceback)"
    )
