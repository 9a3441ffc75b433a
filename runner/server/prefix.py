"""Paths as clients write them, made into the paths that are routed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from litestar.enums import ScopeType

if TYPE_CHECKING:
    from litestar.types import ASGIApp, Receive, Scope, Send

__all__ = ["PathPrefix", "routed_path"]

#: Docker Desktop's clients put this in front; Desktop used to take it off.
DESKTOP_PREFIX = "/exp/vDD4.40"
_SLASHES = re.compile("/{2,}")


def routed_path(path: str) -> str:
    """The path without Desktop's prefix, and with runs of slashes made one."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    if path == DESKTOP_PREFIX or path.startswith(DESKTOP_PREFIX + "/"):
        path = path.removeprefix(DESKTOP_PREFIX) or "/"
    return path


class PathPrefix:
    """ASGI middleware that rewrites the path of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Rewrite the path and pass the request on."""
        if scope["type"] == ScopeType.HTTP:
            path = scope["path"]
            if (routed := routed_path(path)) != path:
                scope["path"] = routed
                scope["raw_path"] = routed.encode()
        await self._app(scope, receive, send)
