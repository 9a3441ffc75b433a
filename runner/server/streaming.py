"""Server-sent events: one coroutine from the lease to the last chunk.

A response class with a body of its own, rather than a generator handed to Litestar: everything
before the first byte, errors with their status included, and everything after it happen in one
task group, which the client's departure cancels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import anyio
from litestar import Response

from runner.openai.errors import error_answer
from runner.openai.generation import data_line
from runner.server.context import REQUEST_ID
from runner.server.disconnect import cancel_on_disconnect, unwrapped
from runner.server.errors import as_runner_error
from runner.server.generation import Job, perform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from litestar.response.base import ASGIResponse
    from litestar.types import ASGIApp, Receive, Scope, Send

    from runner.api.events import Event
    from runner.openai.generation import StreamEncoder
    from runner.scheduler import Lease
    from runner.server.services import Services

__all__ = ["AppResponse", "Body", "EventStream"]

#: How often a client that waits for a load hears of it.
NOTE_INTERVAL_S = 1.0


class AppResponse(Response[None]):
    """Lets a handler answer with an ASGI application; it may raise until it starts its response."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(None)
        self._app = app

    def to_asgi_response(self, *_args: Any, **_kwargs: Any) -> ASGIResponse:
        """The application itself, which Litestar only calls."""
        return cast("ASGIResponse", self._app)


class Body:
    """A response body that is sent piece by piece."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        self.is_started = False

    async def write(self, data: bytes) -> None:
        """Send a piece; status 200 and the headers go before the first."""
        if not self.is_started:
            self.is_started = True
            await self._send(
                {"type": "http.response.start", "status": 200, "headers": self._headers}
            )
        if data:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self) -> None:
        """End the body."""
        await self.write(b"")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream:
    """The ASGI application that answers one streaming request.

    Until ``stream_commit_s`` it sends nothing, so that an error has its status. Then it commits
    to 200 and tells in comments what is happening until the first event. An error after that is a
    ``data:`` line with the error envelope, and no ``[DONE]`` follows.
    """

    def __init__(
        self, services: Services, job: Job, encoder: StreamEncoder, headers: Mapping[str, str]
    ) -> None:
        self._services = services
        self._job = job
        self._encoder = encoder
        self._headers = {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            # Tells nginx, which many put in front, not to hold events back.
            "x-accel-buffering": "no",
            **headers,
        }
        self._lease: Lease | None = None
        #: Set by the first event or error: no more notes.
        self._is_answering = anyio.Event()
        self._narrator_done = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = Body(send, self._headers)
        with unwrapped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
                tasks.start_soon(self._narrate, body)
                await self._answer(body)
                tasks.cancel_scope.cancel()

    async def _answer(self, body: Body) -> None:
        async def sink(events: list[Event]) -> None:
            await self._stop_narrator()
            await body.write(self._encoder.encode(events))

        try:
            await perform(self._services, self._job, sink, on_lease=self._note_lease)
        except Exception as exc:
            await self._stop_narrator()
            if not body.is_started:
                raise
            answer = error_answer(as_runner_error(exc), request_id=REQUEST_ID.get() or None)
            await body.write(data_line(answer))
        await body.finish()

    def _note_lease(self, lease: Lease) -> None:
        self._lease = lease

    async def _stop_narrator(self) -> None:
        """Two senders must not interleave: wait until the other one is through."""
        if not self._is_answering.is_set():
            self._is_answering.set()
            await self._narrator_done.wait()

    async def _narrate(self, body: Body) -> None:
        try:
            pause_s = self._services.settings.stream_commit_s
            while True:
                with anyio.move_on_after(pause_s):
                    await self._is_answering.wait()
                if self._is_answering.is_set():
                    return
                note = self._lease.note if self._lease is not None else ""
                # A newline would end the comment.
                await body.write(f": {' '.join(note.split()) or 'working'}\n\n".encode())
                pause_s = NOTE_INTERVAL_S
        finally:
            self._narrator_done.set()
