"""What the scheduler knows, as values: records are replaced, never changed.

The life of a worker record::

    estimating -> waiting -> loading -> ready -> draining -> stopping -> (gone)

Memory is reserved from ``loading`` until the process is really gone. A *claim* is a record that is
``waiting``: it holds no memory. ``draining`` finishes its leases and takes no new ones.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from runner.api.backend import LoadConfig, MemoryEstimate, Placement
from runner.api.engine import EngineStats
from runner.api.model import Model

__all__ = [
    "ACCEPTING",
    "HOLDING",
    "LeaseRecord",
    "Limits",
    "LoadSpec",
    "Phase",
    "Record",
    "Snapshot",
    "WaitReason",
    "WorkerState",
    "WorkerStatus",
]

Phase = Literal["estimating", "waiting", "loading", "ready", "draining", "stopping"]

#: Phases whose record takes new leases; a key has at most one such record.
ACCEPTING: frozenset[Phase] = frozenset({"estimating", "waiting", "loading", "ready"})
#: Phases in which memory is reserved.
HOLDING: frozenset[Phase] = frozenset({"loading", "ready", "draining", "stopping"})

#: Why a claim is not granted yet: earlier claims come first; memory is coming free; leased workers
#: hold it; leased workers were closed for it; loads under way hold it.
WaitReason = Literal["", "behind", "unloading", "busy", "closing", "loading"]

#: A worker's state as users see it.
WorkerState = Literal["estimating", "waiting", "loading", "ready", "closing"]


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to load, and how: a request for a worker."""

    #: From :func:`runner.scheduler.keys.load_key`; equal keys share a worker.
    key: str
    backend: str
    model: Model
    config: LoadConfig
    #: A pinned worker is unloaded only on request. Policy: not part of the key.
    is_pinned: bool = False


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how many; from the daemon's settings."""

    #: Idle time after which a worker is unloaded; -1 keeps it, 0 unloads it at once.
    keep_alive_s: float = 300.0
    #: Leases that may wait for memory or a load, in all.
    queue_limit: int = 512
    #: How long a claim waits at the head of the queue before leased workers are closed for it.
    starvation_s: float = 20.0


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A request's claim on a worker."""

    id: int
    worker_id: int
    client: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, from the wish for it to the end of its process. Times are ``Effects.now()``."""

    id: int
    spec: LoadSpec
    phase: Phase
    created_at: float
    last_used: float
    keep_alive_s: float
    is_pinned: bool = False
    #: Ids of the leases attached to it, waiting or running.
    leases: tuple[int, ...] = ()
    estimate: MemoryEstimate | None = None
    #: Bytes by device, from the estimate; reserved in the phases of :data:`HOLDING`.
    need: dict[str, int] = {}
    wait: WaitReason = ""
    #: When no earlier claim stood before this one any more.
    head_since: float | None = None
    loading_since: float | None = None
    ready_since: float | None = None
    progress: float | None = None
    progress_note: str = ""
    #: The claim this worker was closed for; None when it drains for another reason.
    closing_for: int | None = None

    @property
    def load_s(self) -> float:
        """How long its load took."""
        if self.loading_since is None or self.ready_since is None:
            return 0.0
        return self.ready_since - self.loading_since

    @property
    def is_idle(self) -> bool:
        """Ready, and nobody uses it."""
        return self.phase == "ready" and not self.leases


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a decision may look at."""

    now: float
    limits: Limits
    #: Bytes that workers may hold together, by device.
    capacity: dict[str, int]
    #: In the order of their ids, which is the order of arrival.
    workers: tuple[Record, ...]


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker, for ``/engines/ps`` and ``runner ps``."""

    key: str
    backend: str
    model_id: str
    model_name: str
    state: WorkerState
    pid: int | None
    #: Leases that have the worker, and leases that wait for it.
    leases: int
    waiting: int
    #: None until it has been ready.
    last_used_unix: float | None
    keep_alive_s: float
    placement: Placement | None
    #: Bytes by device.
    estimate: dict[str, int]
    stats: EngineStats | None
    #: 0.0 to 1.0 while it loads, if the backend tells.
    progress: float | None
    is_pinned: bool = False
