"""The scheduler's state and its transitions, without time, tasks or processes of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from runner.api.errors import ConflictError, RunnerError, ShuttingDown, WorkerDied
from runner.scheduler import backoff, messages, policy, words
from runner.scheduler.state import ACCEPTING, LeaseRecord, Record, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runner.scheduler.messages import Command, Message
    from runner.scheduler.state import Limits, LoadSpec

__all__ = ["SchedulerCore"]

_STOPPING = "the daemon is stopping and takes no new requests"


class SchedulerCore:
    """Turns messages into commands: ``handle(message, now)`` is all that happens.

    The caller performs the commands and reports back with further messages. Nothing is awaited and
    no clock is read here, so that tests can drive every interleaving.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._capacity: dict[str, int] = {}
        self._workers: dict[int, Record] = {}
        self._leases: dict[int, LeaseRecord] = {}
        self._failures: dict[str, backoff.Failures] = {}
        self._said: dict[int, str] = {}
        self._last_id = 0
        self._is_closed = False
        self._now = 0.0
        self._commands: list[Command] = []

    @property
    def workers(self) -> tuple[Record, ...]:
        """All records, in the order of arrival."""
        return tuple(self._workers.values())

    @property
    def n_leases(self) -> int:
        """Leases that wait or run."""
        return len(self._leases)

    def snapshot(self) -> Snapshot:
        """What decisions are made from."""
        return Snapshot(
            now=self._now, limits=self._limits, capacity=dict(self._capacity), workers=self.workers
        )

    def next_deadline(self) -> float | None:
        """When to send a :class:`~runner.scheduler.messages.Tick` at the latest."""
        return policy.next_deadline(self.snapshot())

    def in_use(self, model_id: str) -> bool:
        """True when some request holds, or waits for, a worker of the model."""
        return any(w.leases and w.spec.model.id == model_id for w in self._workers.values())

    def handle(self, message: Message, now: float) -> list[Command]:
        """Apply a message, then decide and apply until there is nothing left to do."""
        self._now = now
        self._commands = []
        self._apply(message)
        while self._act(policy.decide(self.snapshot())):
            pass
        self._tell_notes()
        return self._commands

    # Messages

    def _apply(self, message: Message) -> None:
        match message:
            case messages.Request():
                self._request(message)
            case messages.Release(lease_id):
                self._release(lease_id)
            case messages.Estimated():
                self._estimated(message)
            case messages.EstimateFailed(worker_id=worker_id, error=error):
                self._estimate_failed(worker_id, error)
            case messages.Loaded(worker_id):
                self._loaded(worker_id)
            case messages.Progress(worker_id=worker_id, fraction=fraction, note=note):
                if self._phase(worker_id) == "loading":
                    fraction = min(max(fraction, 0.0), 1.0)
                    self._update(worker_id, progress=fraction, progress_note=note)
            case messages.Gone(worker_id=worker_id, error=error):
                self._gone(worker_id, error)
            case messages.Unload():
                self._unload(message)
            case messages.BeginDrain():
                self._begin_drain()
            case messages.StopAll():
                self._stop_all()

    def _request(self, message: messages.Request) -> None:
        worker = self._accepting(message.spec.key)
        if (error := self._objection(message.spec, worker)) is not None:
            self._commands.append(messages.Fail(message.lease_id, error))
            return
        if worker is None:
            worker = self._new_worker(message.spec)
        keep_alive_s = message.keep_alive_s
        self._update(
            worker.id,
            leases=(*worker.leases, message.lease_id),
            keep_alive_s=self._limits.keep_alive_s if keep_alive_s is None else keep_alive_s,
            is_pinned=message.spec.is_pinned,
        )
        self._leases[message.lease_id] = LeaseRecord(
            id=message.lease_id, worker_id=worker.id, client=message.client
        )
        if worker.phase == "ready":
            self._commands.append(messages.Resolve(message.lease_id, worker.id))

    def _objection(self, spec: LoadSpec, worker: Record | None) -> RunnerError | None:
        """Why a lease is refused at once."""
        if self._is_closed:
            return ShuttingDown(_STOPPING)
        if worker is not None and worker.phase == "ready":
            return None
        waiting = sum(
            len(w.leases)
            for w in self._workers.values()
            if w.phase in {"estimating", "waiting", "loading"}
        )
        if waiting >= self._limits.queue_limit:
            return words.queue_full_error(waiting)
        if worker is None:
            return backoff.refusal(self._failures.get(spec.key), spec.model.name, self._now)
        return None

    def _new_worker(self, spec: LoadSpec) -> Record:
        self._last_id += 1
        worker = Record(
            id=self._last_id,
            spec=spec,
            phase="estimating",
            created_at=self._now,
            last_used=self._now,
            keep_alive_s=self._limits.keep_alive_s,
        )
        self._workers[worker.id] = worker
        self._commands.append(messages.StartEstimate(worker_id=worker.id, spec=spec))
        return worker

    def _release(self, lease_id: int) -> None:
        if (lease := self._forget(lease_id)) is None:
            return
        worker = self._update(lease.worker_id, last_used=self._now)
        if not worker.leases and worker.phase in {"estimating", "waiting"}:
            # What has not begun to load would take memory from others for nobody.
            self._drop(worker)

    def _estimated(self, message: messages.Estimated) -> None:
        self._capacity = dict(message.budget.devices)
        if self._phase(message.worker_id) != "estimating":
            return
        need: dict[str, int] = {}
        for memory in message.estimate.devices:
            if memory.total > 0:
                need[memory.device] = need.get(memory.device, 0) + memory.total
        self._update(message.worker_id, phase="waiting", estimate=message.estimate, need=need)

    def _estimate_failed(self, worker_id: int, error: RunnerError) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None and worker.phase == "estimating":
            self._fail_leases(worker, error)
            del self._workers[worker_id]
            self._count_failure(worker, error)

    def _loaded(self, worker_id: int) -> None:
        if self._phase(worker_id) == "stopping":
            # Aborted at the very moment it became ready.
            self._stop(worker_id, "aborted")
        elif self._phase(worker_id) == "loading":
            worker = self._update(
                worker_id, phase="ready", ready_since=self._now, last_used=self._now, progress=None
            )
            for lease_id in worker.leases:
                self._commands.append(messages.Resolve(lease_id, worker_id))

    def _gone(self, worker_id: int, error: RunnerError | None) -> None:
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return
        if worker.phase == "stopping":
            if worker.ready_since is not None:
                self._failures.pop(worker.spec.key, None)
            return
        if error is None:
            error = WorkerDied(
                f"the worker of {worker.spec.model.name} ended; try again to start it anew"
            )
        self._fail_leases(worker, error)
        if worker.ready_since is not None and self._now - worker.ready_since >= backoff.STABLE_S:
            self._failures.pop(worker.spec.key, None)
        self._count_failure(worker, error)

    def _count_failure(self, worker: Record, error: RunnerError) -> None:
        kept = {k: f for k, f in self._failures.items() if not f.is_forgotten(worker.created_at)}
        if backoff.counts_as_failure(error):
            key = worker.spec.key
            kept[key] = backoff.failed_again(
                kept.get(key), error, began_at=worker.created_at, now=self._now
            )
        self._failures = kept

    def _unload(self, message: messages.Unload) -> None:
        count = 0
        for worker in self.workers:
            is_meant = (message.backend is None or worker.spec.backend == message.backend) and (
                message.model_ids is None or worker.spec.model.id in message.model_ids
            )
            if not is_meant or worker.phase == "stopping":
                continue
            count += 1
            if worker.phase in {"ready", "draining"} and worker.leases:
                self._update(worker.id, phase="draining", closing_for=None)
            else:
                name = worker.spec.model.name
                self._end(
                    worker,
                    ConflictError(f"{name} was unloaded while it was being loaded"),
                    "unloaded",
                )
        self._commands.append(messages.Answer(message.ticket, count))

    def _begin_drain(self) -> None:
        self._is_closed = True
        for worker in self.workers:
            if worker.phase in {"estimating", "waiting"}:
                self._end(worker, ShuttingDown(_STOPPING), "shutdown")

    def _stop_all(self) -> None:
        self._is_closed = True
        for worker in self.workers:
            self._end(worker, ShuttingDown(_STOPPING), "shutdown")

    # Actions

    def _act(self, actions: Iterable[policy.Action]) -> bool:
        """Apply a decision; True when it changed more than why claims wait."""
        has_changed = False
        for action in actions:
            match action:
                case policy.Wait(worker_id, reason, is_head):
                    since = self._workers[worker_id].head_since
                    if is_head and since is None:
                        since = self._now
                    self._update(worker_id, wait=reason, head_since=since)
                    continue
                case policy.Grant(worker_id):
                    self._grant(self._workers[worker_id])
                case policy.Refuse(worker_id, error):
                    self._fail_leases(self._workers.pop(worker_id), error)
                case policy.Stop(worker_id, cause):
                    self._stop(worker_id, cause)
                case policy.Close(worker_id, claim_id):
                    self._update(worker_id, phase="draining", closing_for=claim_id)
                case policy.Reopen(worker_id):
                    self._reopen(self._workers[worker_id])
            has_changed = True
        return has_changed

    def _grant(self, claim: Record) -> None:
        assert claim.estimate is not None
        self._update(claim.id, phase="loading", loading_since=self._now, wait="")
        self._commands.append(
            messages.StartLoad(
                worker_id=claim.id, spec=claim.spec, placement=claim.estimate.placement
            )
        )

    def _reopen(self, worker: Record) -> None:
        """Take new leases again, first those that queued for a successor."""
        successor = self._accepting(worker.spec.key)
        self._update(worker.id, phase="ready", closing_for=None)
        if successor is None:
            return
        for lease_id in successor.leases:
            self._leases[lease_id] = msgspec.structs.replace(
                self._leases[lease_id], worker_id=worker.id
            )
            self._commands.append(messages.Resolve(lease_id, worker.id))
        self._update(
            worker.id,
            leases=worker.leases + successor.leases,
            keep_alive_s=successor.keep_alive_s,
            is_pinned=successor.is_pinned,
        )
        self._drop(successor)

    # Records

    def _accepting(self, key: str) -> Record | None:
        found = (w for w in self._workers.values() if w.spec.key == key and w.phase in ACCEPTING)
        return next(found, None)

    def _phase(self, worker_id: int) -> str | None:
        worker = self._workers.get(worker_id)
        return None if worker is None else worker.phase

    def _update(self, worker_id: int, **changes: Any) -> Record:
        worker = msgspec.structs.replace(self._workers[worker_id], **changes)
        self._workers[worker_id] = worker
        return worker

    def _end(self, worker: Record, error: RunnerError, cause: str) -> None:
        """End a worker in whatever phase it is, and its leases with ``error``."""
        self._fail_leases(worker, error)
        match worker.phase:
            case "estimating" | "waiting":
                self._drop(worker)
            case "loading":
                self._update(worker.id, phase="stopping")
                self._commands.append(messages.AbortLoad(worker.id))
            case "ready" | "draining":
                self._stop(worker.id, cause)
            case "stopping":
                pass

    def _stop(self, worker_id: int, cause: str) -> None:
        name = self._update(worker_id, phase="stopping").spec.model.name
        self._commands.append(messages.StopWorker(worker_id=worker_id, name=name, cause=cause))

    def _drop(self, worker: Record) -> None:
        """Forget a record that has no process."""
        del self._workers[worker.id]
        if worker.phase == "estimating":
            self._commands.append(messages.AbortEstimate(worker.id))

    def _forget(self, lease_id: int) -> LeaseRecord | None:
        lease = self._leases.pop(lease_id, None)
        self._said.pop(lease_id, None)
        if lease is not None:
            remaining = tuple(i for i in self._workers[lease.worker_id].leases if i != lease_id)
            self._update(lease.worker_id, leases=remaining)
        return lease

    def _fail_leases(self, worker: Record, error: RunnerError) -> None:
        for lease_id in worker.leases:
            self._leases.pop(lease_id, None)
            self._said.pop(lease_id, None)
            self._commands.append(messages.Fail(lease_id, error))
        if worker.id in self._workers:
            self._update(worker.id, leases=())

    def _tell_notes(self) -> None:
        for worker in self._workers.values():
            if worker.phase in {"estimating", "waiting", "loading"}:
                text = words.note(worker)
                for lease_id in worker.leases:
                    if self._said.get(lease_id) != text:
                        self._said[lease_id] = text
                        self._commands.append(messages.Note(lease_id, text))
