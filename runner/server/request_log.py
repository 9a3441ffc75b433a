"""Gives every request its id, and the log a line about it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from litestar.enums import ScopeType

from runner.server.context import REQUEST_ID, header, new_request_id

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestLog"]

log = logging.getLogger("runner.access")


class RequestLog:
    """ASGI middleware, outermost: ``x-request-id`` on every response, one log line per request.

    The line has method, path, status and duration; never a query, a header or a body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, under an id."""
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = new_request_id(header(scope, b"x-request-id"))
        id_header = (b"x-request-id", request_id.encode("ascii"))
        # What stands when the client left before there was a response.
        status = 499

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], id_header]
            await send(message)

        # Taken now: the router rewrites scope["path"].
        method, path = scope["method"], scope["path"]
        started = time.perf_counter()
        token = REQUEST_ID.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if log.isEnabledFor(logging.INFO):
                took_ms = (time.perf_counter() - started) * 1000
                log.info("%s %s %d %.1fms", method, _printable(path), status, took_ms)
            REQUEST_ID.reset(token)


def _printable(path: str) -> str:
    """The path without what could forge a log line."""
    return path if path.isprintable() else repr(path)
