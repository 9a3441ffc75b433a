"""The daemon's handle of a worker process that has loaded its model."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import anyio
import msgspec

from runner.api.engine import EngineStats
from runner.api.errors import ConflictError, RequestError, WorkerDied
from runner.worker.codec import FrameError, encode_frame
from runner.worker.frames import Cancel, Stop, Submit
from runner.worker.output import last_lines
from runner.worker.stream import RequestStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.api.errors import RunnerError
    from runner.api.requests import EngineRequest
    from runner.worker.frames import DaemonFrame, Events

__all__ = ["Worker", "WorkerExit", "signal_group"]

#: How long SIGTERM may take at most, once asking has not helped.
_TERM_S = 2.0
_HINTS = {
    "SIGKILL": "perhaps the system ran out of memory",
    "SIGILL": "the engine library uses instructions that this CPU lacks",
}


class WorkerExit(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker process ended."""

    #: Negative: the number of the signal.
    returncode: int
    signal: str | None = None
    #: The end of what it printed.
    stderr_tail: str = ""
    #: Why the daemon ended it, where it did.
    cause: str = ""

    def describe(self) -> str:
        """Its exit and its last words, to follow "the worker"."""
        if self.signal is None:
            text = f"exited with status {self.returncode}"
        else:
            text = f"was killed by {self.signal}"
        if self.cause:
            text += f" ({self.cause})"
        elif self.signal in _HINTS:
            text += f" ({_HINTS[self.signal]})"
        if self.stderr_tail:
            text += f"; the end of its output:\n{last_lines(self.stderr_tail)}"
        return text


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that ``pid`` leads; nobody left is fine."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        # macOS says PermissionError for a group of zombies.
        return


class Worker:
    """A process with a loaded model. :func:`~runner.worker.process.run_worker` makes and reaps it.

    All methods belong to the event loop's thread.
    """

    def __init__(self, *, pid: int, name: str, send: Callable[[bytes], None]) -> None:
        self.pid = pid
        #: What the model is called, for messages.
        self.name = name
        #: The engine's latest word.
        self.stats = EngineStats()
        self.exit: WorkerExit | None = None
        self._send = send
        self._streams: dict[str, RequestStream] = {}
        self._is_leaving = False
        self._exited = anyio.Event()

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests: it has neither ended nor begun to."""
        return self.exit is None and not self._is_leaving

    async def wait_exited(self) -> None:
        """Wait until the process is gone and its last events have been delivered."""
        await self._exited.wait()

    def submit(self, request: EngineRequest) -> RequestStream:
        """A stream of the request's events; entering it submits the request.

        Entering raises ``WorkerDied`` when the worker is gone, ``ConflictError`` for an id that is
        in use, and ``RequestError`` for values that cannot be passed on.
        """
        return RequestStream(request, self)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ask, then SIGTERM, then SIGKILL, each with its deadline; return when it is gone."""
        self._post(Stop())
        for wait_s, number in ((grace_s, signal.SIGTERM), (min(grace_s, _TERM_S), signal.SIGKILL)):
            with anyio.move_on_after(wait_s):
                await self.wait_exited()
                return
            signal_group(self.pid, number)
        await self.wait_exited()

    def open(self, stream: RequestStream) -> None:
        """Submit a stream's request; for :class:`RequestStream`."""
        request = stream.request
        if not self.is_alive:
            raise self._died()
        if request.id in self._streams:
            raise ConflictError(f"the request id {request.id} is in use: ids must be unique")
        try:
            data = encode_frame(Submit(request=request))
        except FrameError as exc:
            raise RequestError(f"the request cannot be passed to the engine: {exc}") from exc
        self._streams[request.id] = stream
        self._send(data)

    def close(self, stream: RequestStream, *, is_over: bool) -> None:
        """Forget a stream, and cancel its request if it is not over; for :class:`RequestStream`."""
        self._streams.pop(stream.request.id, None)
        if not is_over:
            self._post(Cancel(request_id=stream.request.id))

    def deliver(self, frame: Events) -> None:
        """Hand a frame's events to their streams; for the reader of the worker's socket."""
        self.stats = frame.stats
        for event in frame.events:
            stream = self._streams.get(event.request_id)
            # One that was left, and whose cancel has not reached the engine yet.
            if stream is not None and stream.push(event):
                del self._streams[event.request_id]

    def leave(self) -> None:
        """Take no more requests: the process said that it stops."""
        self._is_leaving = True

    def end(self, how: WorkerExit) -> None:
        """Record the exit and fail the requests that were running; called once, by the reaper."""
        self.exit = how
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(self._died())
        self._exited.set()

    def _post(self, frame: DaemonFrame) -> None:
        if self.exit is None:
            self._send(encode_frame(frame))

    def _died(self) -> RunnerError:
        how = self.exit.describe() if self.exit is not None else "is stopping"
        return WorkerDied(f"the worker of {self.name} {how}")
