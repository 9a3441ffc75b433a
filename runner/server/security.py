"""Who may talk to the daemon over TCP: Host, Origin, API key. The Unix socket is exempt.

The socket's file mode decides there. On TCP, ``Host`` is checked against DNS rebinding and
``Origin``, on every method, against pages of other sites; the key is asked for when one is set.
"""

from __future__ import annotations

import hmac
import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from litestar.enums import ScopeType

from runner.api.errors import AuthenticationError, ForbiddenError, RunnerError
from runner.server.context import is_local_socket
from runner.server.errors import send_error

if TYPE_CHECKING:
    from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

    from runner.config import Settings

__all__ = ["Security", "host_name", "is_loopback"]

#: The name by which containers know the host.
CONTAINER_NAME = "model-runner.docker.internal"
_EXPOSED = b"x-request-id, x-runner-ignored, x-should-retry"


@lru_cache(256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@lru_cache(256)
def host_name(value: str) -> str | None:
    """The name in a ``Host`` header, lower-case, without port and brackets; None if malformed."""
    try:
        parts = urlsplit(f"//{value}")
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != value or parts.username is not None or not parts.hostname:
        return None
    return parts.hostname.removesuffix(".")


class Security:
    """ASGI middleware that refuses what may not pass, and adds CORS headers to what may."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._key = settings.api_key.encode() if settings.api_key else None
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        self._origins = {origin.lower().rstrip("/") for origin in settings.allowed_origins}
        self._bound = settings.host.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on."""
        if scope["type"] != ScopeType.HTTP or is_local_socket(scope):
            await self._app(scope, receive, send)
            return
        headers = _Headers(scope)
        try:
            self._check_host(headers, scope)
            origin = self._checked_origin(headers)
        except RunnerError as error:
            await send_error(send, error)
            return
        if origin is not None:
            if scope["method"] == "OPTIONS":
                await _answer_preflight(send, origin, headers)
                return
            send = _with_cors(send, origin)
        if not self._has_key(headers):
            await send_error(send, AuthenticationError(self._key_hint(headers)))
            return
        await self._app(scope, receive, send)

    def _check_host(self, headers: _Headers, scope: HTTPScope) -> None:
        name = host_name(headers.host[0]) if len(headers.host) == 1 else None
        if name is None:
            raise ForbiddenError("a request over TCP needs exactly one well-formed Host header")
        if is_loopback(name) or name in (CONTAINER_NAME, self._bound):
            return
        server = scope.get("server")
        # The address the connection was made to; a rebound name is never an address.
        if server is not None and name == server[0].lower():
            return
        if not self._hosts.isdisjoint({"*", name, headers.host[0].lower()}):
            return
        raise ForbiddenError(
            f'host not allowed: "{name}" (RUNNER_ALLOWED_HOSTS names others to accept)'
        )

    def _checked_origin(self, headers: _Headers) -> str | None:
        if not headers.origin:
            return None
        origin = headers.origin[0]
        if len(headers.origin) == 1 and self._allows_origin(origin):
            return origin
        raise ForbiddenError(
            f'origin not allowed: "{origin}" (RUNNER_ALLOWED_ORIGINS names others to accept)'
        )

    def _allows_origin(self, origin: str) -> bool:
        if not self._origins.isdisjoint({"*", origin.lower()}):
            return True
        scheme, _, rest = origin.partition("://")
        name = host_name(rest)
        if scheme.lower() not in {"http", "https"} or name is None:
            return False
        return is_loopback(name) or name in (CONTAINER_NAME, self._bound)

    def _has_key(self, headers: _Headers) -> bool:
        if self._key is None:
            return True
        return any(hmac.compare_digest(self._key, key) for key in headers.keys)

    def _key_hint(self, headers: _Headers) -> str:
        if headers.keys:
            return "the API key is not the daemon's"
        return "this daemon asks for its API key: send Authorization: Bearer KEY, or x-api-key: KEY"


class _Headers:
    """The few headers that matter here, gathered in one pass."""

    def __init__(self, scope: HTTPScope) -> None:
        self.host: list[str] = []
        self.origin: list[str] = []
        self.keys: list[bytes] = []
        self.asked_headers = b"*"
        for name, value in scope["headers"]:
            match name:
                case b"host":
                    self.host.append(value.decode("latin-1"))
                case b"origin":
                    self.origin.append(value.decode("latin-1"))
                case b"x-api-key":
                    self.keys.append(value)
                case b"authorization":
                    scheme, _, key = value.partition(b" ")
                    if scheme.lower() == b"bearer":
                        self.keys.append(key.strip())
                case b"access-control-request-headers":
                    self.asked_headers = value


def _cors(origin: str) -> list[tuple[bytes, bytes]]:
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"vary", b"Origin"),
    ]


def _with_cors(send: Send, origin: str) -> Send:
    extra = [*_cors(origin), (b"access-control-expose-headers", _EXPOSED)]

    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *extra]
        await send(message)

    return send_with_cors


async def _answer_preflight(send: Send, origin: str, headers: _Headers) -> None:
    allowed = [
        *_cors(origin),
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        # Browsers take `*` literally beside credentials, so what was asked for is named.
        (b"access-control-allow-headers", headers.asked_headers),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": allowed})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
