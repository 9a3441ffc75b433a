"""What is known of the request being served: its id, and which listener it came in by."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from litestar.types import Scope

__all__ = ["REQUEST_ID", "header", "is_local_socket", "new_request_id"]

#: The id of the request that the current task serves; empty outside of one.
REQUEST_ID: ContextVar[str] = ContextVar("runner_request_id", default="")

_USABLE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lower-case) name."""
    return next((value for key, value in scope["headers"] if key == name), None)


def new_request_id(sent: bytes | None) -> str:
    """The client's own id if it is one that can stand in a log line, else a fresh one."""
    if sent is not None and _USABLE.fullmatch(sent):
        return sent.decode("ascii")
    return f"req_{uuid.uuid4().hex}"


def is_local_socket(scope: Scope) -> bool:
    """Whether the request came over the Unix socket.

    uvicorn gives a Unix listener's address as ``(path, None)``; anything else counts as TCP.
    """
    server = scope.get("server")
    return server is not None and server[1] is None
