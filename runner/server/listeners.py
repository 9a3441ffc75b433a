"""The sockets a daemon listens on."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runner.api.errors import ConflictError, RequestError, RunnerError
from runner.server.security import is_loopback

if TYPE_CHECKING:
    from runner.config import Settings

__all__ = ["Listening", "check_exposure", "open_tcp", "open_unix"]

log = logging.getLogger(__name__)


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """Where a daemon can be reached."""

    socket: Path
    #: Base URLs; none when the port was taken, or TCP is off.
    tcp: tuple[str, ...]


def check_exposure(settings: Settings) -> None:
    """Refuse to serve other machines without a key, unless that was said in so many words.

    :raises RequestError: it would.
    """
    if not settings.tcp or is_loopback(settings.host) or settings.api_key:
        return
    if not settings.allow_unauthenticated:
        raise RequestError(
            f"refusing to listen on {settings.host} without an API key: set RUNNER_API_KEY, or "
            "give --allow-unauthenticated to let everyone who reaches this address use the models"
        )
    log.warning(
        "LISTENING ON %s WITHOUT AN API KEY: everyone who reaches this address can use, pull and "
        "remove models",
        settings.host,
    )


def open_unix(path: Path) -> socket.socket:
    """Listen on a Unix socket that only its owner may use.

    A socket file on which nobody answers is left over from a daemon that died, and is replaced.

    :raises ConflictError: somebody answers, or the path is no socket.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The file has its mode from the start: a chmod afterwards leaves a moment between.
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        path.chmod(0o600)
    except OSError as exc:
        listener.close()
        raise RunnerError(f"cannot listen on {path}: {exc}") from exc
    return listener


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConflictError(f"{path} exists and is no socket: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                path.unlink()
            return
        except OSError as exc:
            raise ConflictError(f"cannot tell who listens on {path}: {exc}") from exc
    raise ConflictError(f"another daemon listens on {path} already")


def open_tcp(host: str, port: int) -> list[socket.socket]:
    """Listen on TCP; 127.0.0.1 and localhost bring [::1] with them.

    :returns: nothing when the port is taken: the daemon then goes on with its Unix socket.
    :raises RequestError: the address is none of this machine's.
    """
    if host in ("127.0.0.1", "localhost"):
        addresses = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    else:
        addresses = [_resolve(host, port)]
    listeners: list[socket.socket] = []
    for family, address in addresses:
        try:
            listener = _bind(family, address, port)
        except OSError as exc:
            if listeners:
                log.info("not listening on [%s]: %s", address, exc)
                break
            if exc.errno != errno.EADDRINUSE:
                raise RequestError(f"cannot listen on {address} port {port}: {exc}") from exc
            log.warning(
                "TCP port %d is taken: serving the Unix socket only (--port chooses another)", port
            )
            break
        listeners.append(listener)
        port = listener.getsockname()[1]
    return listeners


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise RequestError(f'cannot listen on "{host}": {exc}') from exc
    family, _, _, _, address = found[0]
    return family, str(address[0])


def _bind(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    # Without the protocol number asyncio leaves Nagle's algorithm on, and small answers wait 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        # Only listen() tells of a port that another socket with SO_REUSEADDR has bound.
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def base_url(listener: socket.socket) -> str:
    """The URL of a TCP listener."""
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
