"""What the scheduler's core is told, and what it wants done."""

from __future__ import annotations

import msgspec

from runner.api.backend import Budget, MemoryEstimate, Placement
from runner.api.errors import RunnerError
from runner.scheduler.state import LoadSpec

__all__ = [
    "AbortEstimate",
    "AbortLoad",
    "Answer",
    "BeginDrain",
    "Command",
    "EstimateFailed",
    "Estimated",
    "Fail",
    "Gone",
    "Loaded",
    "Message",
    "Note",
    "Progress",
    "Release",
    "Request",
    "Resolve",
    "StartEstimate",
    "StartLoad",
    "StopAll",
    "StopWorker",
    "Tick",
    "Unload",
]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A lease is wanted."""

    lease_id: int
    spec: LoadSpec
    client: str = ""
    keep_alive_s: float | None = None


class Release(msgspec.Struct, frozen=True):
    """A lease is given back, used or not."""

    lease_id: int


class Estimated(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's need is known; ``budget`` is the capacity, read at the same time."""

    worker_id: int
    estimate: MemoryEstimate
    budget: Budget


class EstimateFailed(msgspec.Struct, frozen=True, kw_only=True):
    """The backend did not say what the worker needs."""

    worker_id: int
    error: RunnerError


class Loaded(msgspec.Struct, frozen=True):
    """The worker is ready."""

    worker_id: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A load goes on."""

    worker_id: int
    fraction: float
    note: str = ""


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """The process is gone: its load failed or was aborted, it was stopped, or it died."""

    worker_id: int
    error: RunnerError | None = None


class Unload(msgspec.Struct, frozen=True, kw_only=True):
    """Unload the workers of a backend and of some models; None is any."""

    ticket: int
    backend: str | None = None
    model_ids: frozenset[str] | None = None


class BeginDrain(msgspec.Struct, frozen=True):
    """Take no new leases; those that wait for memory are refused."""


class StopAll(msgspec.Struct, frozen=True):
    """Take no new leases, end all and every worker."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Message = (
    Request
    | Release
    | Estimated
    | EstimateFailed
    | Loaded
    | Progress
    | Gone
    | Unload
    | BeginDrain
    | StopAll
    | Tick
)


class StartEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Ask the backend what the worker needs; ends in Estimated or EstimateFailed."""

    worker_id: int
    spec: LoadSpec


class AbortEstimate(msgspec.Struct, frozen=True):
    """Nobody wants to know any more; no message follows."""

    worker_id: int


class StartLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Start the worker; ends in Loaded, and later or at once in Gone."""

    worker_id: int
    spec: LoadSpec
    placement: Placement


class AbortLoad(msgspec.Struct, frozen=True):
    """End a worker that is still loading; Gone follows."""

    worker_id: int


class StopWorker(msgspec.Struct, frozen=True, kw_only=True):
    """End a ready worker; Gone follows."""

    worker_id: int
    #: The model's, for the log.
    name: str
    cause: str


class Resolve(msgspec.Struct, frozen=True):
    """The lease has its worker."""

    lease_id: int
    worker_id: int


class Fail(msgspec.Struct, frozen=True):
    """The lease ends with an error."""

    lease_id: int
    error: RunnerError


class Note(msgspec.Struct, frozen=True):
    """Tell a waiting lease what is happening."""

    lease_id: int
    text: str


class Answer(msgspec.Struct, frozen=True):
    """The number of workers that an :class:`Unload` closed."""

    ticket: int
    value: int


Command = (
    StartEstimate
    | AbortEstimate
    | StartLoad
    | AbortLoad
    | StopWorker
    | Resolve
    | Fail
    | Note
    | Answer
)
