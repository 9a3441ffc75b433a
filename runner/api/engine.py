"""The engine contract: what a backend's ``runner_load_model`` returns.

An engine lives in a worker process of its own. One thread, the worker's loop, makes every call, so
an engine needs no locks; how it batches requests is its own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from runner.api.errors import RunnerError
from runner.api.events import Event, Failed, Finished

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.api.requests import EngineRequest

__all__ = ["Engine", "EngineStats", "LoadReport", "SequentialEngine", "Step"]


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What an engine is doing now (gauges), and has done since it was loaded (counters)."""

    #: Sequences being prefilled or decoded.
    active: int = 0
    #: Sequences admitted by ``submit`` that wait for room.
    queued: int = 0
    #: Tokens the KV cache can hold in all, and holds now.
    kv_cells: int = 0
    kv_used: int = 0
    n_prompt: int = 0
    n_completion: int = 0
    n_cached: int = 0


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What one :meth:`Engine.step` produced."""

    #: In order. Empty is normal: prefill, a character not yet whole, a possible stop string.
    events: list[Event]
    #: False lets the worker sleep until a request arrives.
    has_work: bool


class Engine(ABC):
    """A loaded model that answers requests."""

    @abstractmethod
    def submit(self, request: EngineRequest) -> None:
        """Validate a request and queue it; no output yet.

        :raises RunnerError: usually a ``RequestError``; the engine keeps nothing of the request.
        """

    @abstractmethod
    def step(self) -> Step:
        """Advance every active request a little: one token each, or a chunk of prompt.

        A step is short (aim at 150 ms): cancels and new requests are seen between steps. A raise
        ends the worker and fails all its requests, so report what concerns one request as
        :class:`~runner.api.events.Failed`.
        """

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Forget a request and free what it holds before the next step; unknown ids are fine."""

    @abstractmethod
    def stats(self) -> EngineStats:
        """Cheap: it is read after every step that has events."""


class LoadReport(ABC):
    """How ``runner_load_model`` tells of its progress; given to it by the worker."""

    @abstractmethod
    def progress(self, fraction: float, note: str = "") -> None:
        """Say how far the load is, 0.0 to 1.0. A load that reports is not judged stuck."""

    @abstractmethod
    def log(self, message: str) -> None:
        """Say something worth telling the user, in one line."""


class SequentialEngine(Engine):
    """Makes an engine of a library that runs one request at a time.

    Implement :meth:`generate`. It yields the events of one request up to and including
    ``Finished``, or None whenever it has made progress without output; each yield is a point where
    the request can be cancelled (the generator is closed). Requests run in the order of arrival.
    """

    def __init__(self) -> None:
        self._queue: deque[EngineRequest] = deque()
        self._running: tuple[str, Iterator[Event | None]] | None = None

    @abstractmethod
    def generate(self, request: EngineRequest) -> Iterator[Event | None]:
        """Answer one request."""

    def validate(self, request: EngineRequest) -> None:
        """Raise a ``RequestError`` for what this engine cannot do. Called by ``submit``."""

    def submit(self, request: EngineRequest) -> None:
        """Queue a request that :meth:`validate` accepts."""
        self.validate(request)
        self._queue.append(request)

    def step(self) -> Step:
        """Take one event, or one sign of progress, from the running request."""
        if self._running is None:
            if not self._queue:
                return Step(events=[], has_work=False)
            request = self._queue.popleft()
            self._running = (request.id, iter(self.generate(request)))
        request_id, events = self._running
        produced: list[Event] = []
        try:
            event = next(events)
        except StopIteration:
            message = f"the engine ended request {request_id} without finishing it"
            event = Failed(request_id=request_id, code="internal_error", message=message)
        except RunnerError as error:
            event = Failed(
                request_id=request_id, code=error.code, message=error.message, param=error.param
            )
        if event is not None:
            produced.append(event)
        if isinstance(event, Finished | Failed):
            self._close_running()
        return Step(events=produced, has_work=self._running is not None or bool(self._queue))

    def cancel(self, request_id: str) -> None:
        """Drop a queued request, or close the running one's generator."""
        self._queue = deque(r for r in self._queue if r.id != request_id)
        if self._running is not None and self._running[0] == request_id:
            self._close_running()

    def stats(self) -> EngineStats:
        """One request active at most; there is no shared KV cache to speak of."""
        return EngineStats(active=int(self._running is not None), queued=len(self._queue))

    def _close_running(self) -> None:
        if self._running is not None:
            close = getattr(self._running[1], "close", None)
            self._running = None
            if close is not None:
                close()
