"""The messages between the daemon and a worker, both ways: two tagged unions.

The child speaks first (:class:`Hello`); the daemon answers with :class:`Load`. From :class:`Ready`
on the daemon sends :class:`Submit`, :class:`Cancel` and :class:`Stop`, and the child one
:class:`Events` for each engine step that had anything to say.
"""

from __future__ import annotations

import msgspec

from runner.api.engine import EngineStats
from runner.api.events import Event
from runner.api.requests import EngineRequest
from runner.worker.spec import WorkerSpec

__all__ = [
    "PROTOCOL",
    "Bye",
    "Cancel",
    "ChildFrame",
    "DaemonFrame",
    "Events",
    "Hello",
    "Load",
    "LoadFailed",
    "Log",
    "Progress",
    "Ready",
    "Stop",
    "Submit",
]

#: Raised by one whenever a frame changes its meaning or its shape.
PROTOCOL = 1


class Hello(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="hello"):
    """The child's first frame.

    It alone tolerates unknown fields and must never change its first three: a daemon has to
    understand the hello of any later version, to say that it needs a restart.
    """

    protocol: int
    version: str
    pid: int


class Progress(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="progress",
):
    """How far the load is, 0.0 to 1.0."""

    fraction: float
    note: str = ""


class Log(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="log",
):
    """A line of the load worth telling."""

    message: str


class Ready(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="ready",
):
    """The model is loaded."""

    stats: EngineStats


class LoadFailed(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="load_failed",
):
    """The load raised; the child is about to exit. The fields are those of a ``RunnerError``."""

    code: str
    message: str
    param: str | None = None


class Events(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="events",
):
    """What one engine step produced for all requests; no events when only the gauges changed."""

    events: list[Event]
    stats: EngineStats


class Bye(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="bye",
):
    """The child stops in good order; no events follow."""


ChildFrame = Hello | Progress | Log | Ready | LoadFailed | Events | Bye


class Load(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="load",
):
    """Load this model; sent once."""

    spec: WorkerSpec


class Submit(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="submit",
):
    """Queue a request."""

    request: EngineRequest


class Cancel(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="cancel",
):
    """Forget a request; unknown ids are fine."""

    request_id: str


class Stop(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    array_like=True,
    forbid_unknown_fields=True,
    tag="stop",
):
    """Unload and exit."""


DaemonFrame = Load | Submit | Cancel | Stop
