"""Every error as OpenAI's JSON envelope, whoever raised it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException

from runner.api.errors import (
    AuthenticationError,
    BodyTooLarge,
    CapacityError,
    MethodNotAllowed,
    NotFoundError,
    RequestError,
    RunnerError,
)
from runner.openai.errors import error_answer
from runner.server.context import REQUEST_ID
from runner.server.disconnect import ClientDisconnected

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar import Request
    from litestar.types import Send

__all__ = ["as_runner_error", "encode_error", "error_headers", "exception_handlers", "send_error"]

log = logging.getLogger(__name__)

#: What clients are told to wait when the daemon is full.
RETRY_AFTER_S = 2


def as_runner_error(exc: BaseException) -> RunnerError:
    """The error a client is shown for an exception.

    Groups of one are unwrapped; what is no ``RunnerError`` is logged and shown without its words,
    which may hold paths or prompts.
    """
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    if isinstance(exc, RunnerError):
        return exc
    log.error("internal error", exc_info=exc)
    request_id = REQUEST_ID.get()
    where = f" (look for {request_id} in the daemon's log)" if request_id else ""
    return RunnerError(f"internal error{where}")


def encode_error(error: RunnerError) -> bytes:
    """The envelope, with the id of the current request."""
    return msgspec.json.encode(error_answer(error, request_id=REQUEST_ID.get() or None))


def error_headers(error: RunnerError) -> dict[str, str]:
    """What the status alone does not tell a client."""
    headers = {}
    if not error.is_retryable:
        headers["x-should-retry"] = "false"
    elif isinstance(error, CapacityError):
        headers["retry-after"] = str(RETRY_AFTER_S)
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = "Bearer"
    return headers


async def send_error(send: Send, error: RunnerError) -> None:
    """Answer with an error from outside the application."""
    body = encode_error(error)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **error_headers(error),
    }
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def exception_handlers(
    *, body_limit_bytes: int
) -> dict[int | type[Exception], Callable[[Request[Any, Any, Any], Any], Response[Any]]]:
    """The handlers for the Litestar application."""

    def on_http_exception(request: Request[Any, Any, Any], exc: HTTPException) -> Response[bytes]:
        error = _translate(request, exc, body_limit_bytes=body_limit_bytes)
        return _response(error, status=exc.status_code, headers=exc.headers or {})

    return {
        ClientDisconnected: _on_disconnect,
        HTTPException: on_http_exception,
        Exception: _on_exception,
    }


def _on_exception(_request: Request[Any, Any, Any], exc: Exception) -> Response[bytes]:
    error = as_runner_error(exc)
    return _response(error, status=error.status)


def _on_disconnect(_request: Request[Any, Any, Any], _exc: ClientDisconnected) -> Response[bytes]:
    # Nobody reads this; the status is for the access log.
    return Response(b"", status_code=499, media_type="text/plain")


def _translate(
    request: Request[Any, Any, Any], exc: HTTPException, *, body_limit_bytes: int
) -> RunnerError:
    route = f"{request.scope['method']} {request.scope['path']}"
    match exc.status_code:
        case 404:
            return NotFoundError(f"there is nothing at {route}")
        case 405:
            return MethodNotAllowed(f"{route} is not possible: the path takes other methods")
        case 413:
            return BodyTooLarge(limit_bytes=body_limit_bytes)
        case status if status < 500:
            return RequestError(exc.detail)
        case _:
            return as_runner_error(exc)


def _response(
    error: RunnerError, *, status: int, headers: dict[str, str] | None = None
) -> Response[bytes]:
    return Response(
        encode_error(error),
        status_code=status,
        media_type="application/json",
        headers={**(headers or {}), **error_headers(error)},
    )
