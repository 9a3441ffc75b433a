"""The task that owns the scheduler's state, and the doors to it."""

from __future__ import annotations

import logging
import math
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED

from runner.api.errors import ShuttingDown
from runner.scheduler import messages
from runner.scheduler.core import SchedulerCore
from runner.scheduler.lease import Lease
from runner.scheduler.messages import Message
from runner.scheduler.state import WorkerStatus
from runner.scheduler.tasks import WorkerTasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup, TaskStatus
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from runner.scheduler.effects import Effects
    from runner.scheduler.messages import Command
    from runner.scheduler.state import Limits, LoadSpec, Record, WorkerState

__all__ = ["Scheduler"]

_log = logging.getLogger(__name__)

#: How long all workers together may take to end when the scheduler stops: longer than one
#: worker's own ladder of ask, TERM and KILL.
_STOP_ALL_S = 15.0


class _Ask:
    """A question to the state, answered as soon as ``probe`` returns something else than None."""

    def __init__(
        self, ticket: int, message: Message, probe: Callable[[], Any], default: Any
    ) -> None:
        self.ticket = ticket
        self.message = message
        self.probe = probe
        self.value = default
        self.is_settled = anyio.Event()

    def settle(self, value: Any) -> None:
        self.value = value
        self.is_settled.set()


#: What the task of :meth:`Scheduler.run` receives.
_Item = Message | Lease | _Ask


class Scheduler:
    """Decides which models are in memory. ``await tg.start(scheduler.run)``, then lease workers.

    Every method only sends a message to the task of :meth:`run`, which alone reads and changes the
    state. Decisions are pure (:mod:`runner.scheduler.policy`); everything else is ``effects``.
    """

    def __init__(self, effects: Effects, limits: Limits) -> None:
        self._effects = effects
        self._core = SchedulerCore(limits)
        self._work = WorkerTasks(effects, self._post)
        self._ids = count(1)
        self._inbox: MemoryObjectSendStream[_Item] | None = None
        self._leases: dict[int, Lease] = {}
        self._asks: dict[int, _Ask] = {}

    async def run(self, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        """Own the state until cancelled; then end every worker."""
        inbox, receiver = anyio.create_memory_object_stream[_Item](math.inf)
        with inbox, receiver:
            try:
                async with anyio.create_task_group() as tasks:
                    self._inbox = inbox
                    task_status.started()
                    await self._serve(receiver, tasks)
            finally:
                self._inbox = None
                self._dismiss_all(receiver)
                await self._work.stop_all(_STOP_ALL_S)

    def lease(
        self, spec: LoadSpec, *, client: str = "", keep_alive_s: float | None = None
    ) -> Lease:
        """A claim on a worker for ``spec``, registered on entering it.

        :param client: who asks, for fairness.
        :param keep_alive_s: how long the worker stays after its last lease, until a later lease
            says otherwise: -1 for ever, 0 not at all, None as the limits say.
        """
        return Lease(self, next(self._ids), spec, client=client, keep_alive_s=keep_alive_s)

    async def status(self) -> tuple[WorkerStatus, ...]:
        """All workers, in the order they were asked for."""
        answer: tuple[WorkerStatus, ...] = await self._ask(messages.Tick(), self._status, ())
        return answer

    async def in_use(self, model_id: str) -> bool:
        """True when a request holds, or waits for, a worker of the model."""
        answer: bool = await self._ask(messages.Tick(), lambda: self._core.in_use(model_id), False)
        return answer

    async def unload(
        self, *, backend: str | None = None, model_ids: Iterable[str] | None = None
    ) -> int:
        """Unload the workers of a backend and of some models; None is any.

        Idle ones end at once, loads are aborted (who waits for them gets a ConflictError), busy
        ones take no new leases and end with their last one.

        :returns: how many workers that are.
        """
        ticket = next(self._ids)
        wanted = None if model_ids is None else frozenset(model_ids)
        message = messages.Unload(ticket=ticket, backend=backend, model_ids=wanted)
        answer: int = await self._ask(message, lambda: None, 0, ticket)
        return answer

    async def drain(self, timeout_s: float) -> None:
        """Refuse new leases, give running ones ``timeout_s`` to end, then end all workers."""
        with anyio.move_on_after(timeout_s):
            await self._ask(messages.BeginDrain(), lambda: self._core.n_leases == 0 or None, True)
        with anyio.move_on_after(_STOP_ALL_S):
            await self._ask(messages.StopAll(), lambda: not self._core.workers or None, True)

    def claim(self, lease: Lease) -> None:
        """For :class:`Lease`: register it."""
        if self._inbox is None:
            lease.fail(ShuttingDown("the scheduler is not running"))
        else:
            self._inbox.send_nowait(lease)

    def give_back(self, lease: Lease) -> None:
        """For :class:`Lease`: it is over."""
        self._post(messages.Release(lease.id))

    def _post(self, message: Message) -> None:
        if self._inbox is not None:
            self._inbox.send_nowait(message)

    async def _ask(
        self, message: Message, probe: Callable[[], Any], default: Any, ticket: int | None = None
    ) -> Any:
        """Send a message and wait for the answer; ``default`` when the scheduler does not run."""
        ask = _Ask(next(self._ids) if ticket is None else ticket, message, probe, default)
        if self._inbox is not None:
            self._inbox.send_nowait(ask)
            await ask.is_settled.wait()
        return ask.value

    # Below: the task of `run`, and nobody else.

    async def _serve(self, inbox: MemoryObjectReceiveStream[_Item], tasks: TaskGroup) -> None:
        while True:
            message = self._unpack(await self._receive(inbox))
            for command in self._core.handle(message, self._effects.now()):
                self._perform(command, tasks)
            for ask in tuple(self._asks.values()):
                if (value := ask.probe()) is not None:
                    self._asks.pop(ask.ticket).settle(value)

    async def _receive(self, inbox: MemoryObjectReceiveStream[_Item]) -> _Item:
        deadline = self._core.next_deadline()
        timeout_s = None if deadline is None else max(0.0, deadline - self._effects.now())
        with anyio.move_on_after(timeout_s):
            return await inbox.receive()
        return messages.Tick()

    def _unpack(self, item: _Item) -> Message:
        """The message for the core; remembers whom to answer."""
        match item:
            case Lease():
                self._leases[item.id] = item
                return messages.Request(
                    lease_id=item.id,
                    spec=item.spec,
                    client=item.client,
                    keep_alive_s=item.keep_alive_s,
                )
            case _Ask():
                self._asks[item.ticket] = item
                return item.message
            case messages.Release(lease_id):
                self._leases.pop(lease_id, None)
        return item

    def _perform(self, command: Command, tasks: TaskGroup) -> None:
        match command:
            case messages.StartEstimate():
                self._work.estimate(tasks, command)
            case messages.StartLoad(spec=spec):
                _log.info("loading %s on %s", spec.model.name, spec.backend)
                self._work.load(tasks, command)
            case messages.AbortEstimate(worker_id) | messages.AbortLoad(worker_id):
                self._work.abort(worker_id)
            case messages.StopWorker(worker_id=worker_id, cause=cause, name=name):
                _log.info("unloading %s (%s)", name, cause)
                self._work.stop(tasks, worker_id)
            case messages.Answer(ticket, value):
                self._asks.pop(ticket).settle(value)
            case messages.Resolve(lease_id) | messages.Fail(lease_id) | messages.Note(lease_id):
                if (lease := self._leases.get(lease_id)) is not None:
                    self._tell(lease, command)

    def _tell(self, lease: Lease, news: messages.Resolve | messages.Fail | messages.Note) -> None:
        match news:
            case messages.Resolve(_, worker_id):
                # A worker that has died since is told of by the Gone that is on its way.
                if (worker := self._work.workers.get(worker_id)) is not None:
                    lease.resolve(worker)
            case messages.Fail(_, error):
                lease.fail(error)
            case messages.Note(_, text):
                lease.tell(text)

    def _status(self) -> tuple[WorkerStatus, ...]:
        now, unix = self._effects.now(), time.time()
        return tuple(self._describe(record, now, unix) for record in self._core.workers)

    def _describe(self, record: Record, now: float, unix: float) -> WorkerStatus:
        worker = self._work.workers.get(record.id)
        is_ready = record.ready_since is not None
        state: WorkerState
        match record.phase:
            case "draining" | "stopping":
                state = "closing"
            case state:
                pass
        return WorkerStatus(
            key=record.spec.key,
            backend=record.spec.backend,
            model_id=record.spec.model.id,
            model_name=record.spec.model.name,
            state=state,
            pid=None if worker is None else worker.pid,
            leases=len(record.leases) if is_ready else 0,
            waiting=0 if is_ready else len(record.leases),
            last_used_unix=unix - (now - record.last_used) if is_ready else None,
            keep_alive_s=record.keep_alive_s,
            placement=None if record.estimate is None else record.estimate.placement,
            estimate=record.need,
            stats=None if worker is None else worker.stats,
            progress=record.progress,
            is_pinned=record.is_pinned,
        )

    def _dismiss_all(self, inbox: MemoryObjectReceiveStream[_Item]) -> None:
        """Answer everybody who still waits, also in the inbox."""
        while True:
            try:
                self._unpack(inbox.receive_nowait())
            except anyio.WouldBlock:
                break
        for lease in self._leases.values():
            lease.fail(ShuttingDown("the daemon is stopping"))
        for ask in self._asks.values():
            ask.settle(ask.value)
        self._leases.clear()
        self._asks.clear()
