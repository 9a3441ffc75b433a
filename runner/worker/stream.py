"""The daemon's end of one request: what its engine says, merged while nobody reads."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import anyio

from runner.api.errors import error_from_wire
from runner.api.events import Delta, Failed, Finished

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from runner.api.errors import RunnerError
    from runner.api.events import Event, TokenLogprob
    from runner.api.requests import EngineRequest
    from runner.worker.worker import Worker

__all__ = ["RequestStream"]


class _Text:
    """The unread deltas of one choice."""

    def __init__(self, first: Delta) -> None:
        self._first = first
        self._text: io.StringIO | None = None
        self._logprobs: list[TokenLogprob] = []

    def append(self, delta: Delta) -> None:
        if self._text is None:
            self._text = io.StringIO()
            self._text.write(self._first.text)
            self._logprobs += self._first.logprobs
        self._text.write(delta.text)
        self._logprobs += delta.logprobs

    def merged(self) -> Delta:
        if self._text is None:
            return self._first
        return Delta(
            request_id=self._first.request_id,
            index=self._first.index,
            text=self._text.getvalue(),
            logprobs=tuple(self._logprobs),
        )


class RequestStream:
    """The events of one request, as lists of everything that has arrived since the last one.

    Enter it to submit the request, iterate, and leave it: early leaving cancels the request in the
    engine. A slow reader stalls nobody: text of one choice is merged into one
    :class:`~runner.api.Delta`, so that only text (and embedding vectors) pile up here. The order of
    events is kept within each choice, not between choices.

    Iterating raises what ended the request: the engine's error, or
    :class:`~runner.api.WorkerDied`.
    """

    def __init__(self, request: EngineRequest, worker: Worker) -> None:
        self.request = request
        self._worker = worker
        self._unread: list[Event | _Text] = []
        self._texts: dict[int, _Text] = {}
        self._error: RunnerError | None = None
        self._is_over = False
        self._arrival: anyio.Event | None = None

    async def __aenter__(self) -> Self:
        self._worker.open(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._worker.close(self, is_over=self._is_over)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._unread:
            if self._error is not None:
                raise self._error
            if self._is_over:
                raise StopAsyncIteration
            self._arrival = anyio.Event()
            await self._arrival.wait()
        unread, self._unread, self._texts = self._unread, [], {}
        return [item.merged() if isinstance(item, _Text) else item for item in unread]

    def push(self, event: Event) -> bool:
        """Take an event from the worker's reader; True when it was the last."""
        if isinstance(event, Delta):
            text = self._texts.get(event.index)
            if text is not None:
                text.append(event)
                return False
            self._texts[event.index] = text = _Text(event)
            self._unread.append(text)
        elif isinstance(event, Failed):
            self.fail(error_from_wire(event.code, event.message, param=event.param))
            return True
        else:
            self._unread.append(event)
            self._is_over = isinstance(event, Finished)
        self._wake()
        return self._is_over

    def fail(self, error: RunnerError) -> None:
        """End the stream with an error, after what is unread."""
        self._is_over = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None:
            self._arrival.set()
            self._arrival = None
