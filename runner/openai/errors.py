"""OpenAI's error envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from runner.api.errors import RunnerError

__all__ = ["ErrorAnswer", "ErrorInfo", "error_answer"]


class ErrorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong. ``code`` is stable; ``param`` is the path of the field at fault."""

    message: str
    type: str
    param: str | None
    code: str
    #: Also in the header ``x-request-id`` and in the daemon's log; not part of OpenAI's API.
    request_id: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every error."""

    error: ErrorInfo


def error_answer(error: RunnerError, *, request_id: str | None = None) -> ErrorAnswer:
    """The envelope of an error."""
    return ErrorAnswer(
        error=ErrorInfo(
            message=error.message,
            type=error.type,
            param=error.param,
            code=error.code,
            request_id=request_id,
        )
    )
