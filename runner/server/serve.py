"""The life of a daemon: listen, serve, drain, stop."""

from __future__ import annotations

import logging
import math
import os
import signal
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import uvicorn

from runner import __version__
from runner.server.app import create_app
from runner.server.journal import logging_to
from runner.server.listeners import Listening, base_url, check_exposure, open_tcp, open_unix
from runner.server.services import open_services

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from anyio.abc import TaskGroup, TaskStatus
    from litestar.types import ASGIApp

    from runner.config import Settings

__all__ = ["serve"]

log = logging.getLogger(__name__)

#: After the drain, connections are closed that are still open.
_CUT_OFF_S = 5.0


async def serve(settings: Settings, on_ready: Callable[[Listening], None] | None = None) -> None:
    """Run a daemon until SIGTERM or SIGINT; running requests then have ``drain_s`` to finish.

    :param on_ready: told where it listens, once it does.
    :raises RunnerError: it cannot start: the store is another daemon's, the address is not allowed.
    """
    with logging_to(settings.log_dir, level=settings.log_level):
        check_exposure(settings)
        async with open_services(settings) as services:
            unix = open_unix(settings.socket_path)
            try:
                tcp = open_tcp(settings.host, settings.port) if settings.tcp else []
                urls = tuple(base_url(listener) for listener in tcp)
                listening = Listening(socket=settings.socket_path, tcp=urls)
                await run_server(
                    create_app(services),
                    [unix, *tcp],
                    drain=partial(services.scheduler.drain, settings.drain_s),
                    drain_s=settings.drain_s,
                    on_ready=lambda: _announce(listening, on_ready),
                )
            finally:
                with suppress(FileNotFoundError):
                    settings.socket_path.unlink()
        log.info("stopped")


def _announce(listening: Listening, on_ready: Callable[[Listening], None] | None) -> None:
    where = ", ".join([f"unix://{listening.socket}", *listening.tcp])
    log.info("Runner %s listens on %s (pid %d)", __version__, where, os.getpid())
    if on_ready is not None:
        on_ready(listening)


class _Server(uvicorn.Server):
    """uvicorn that tells when it is ready, and leaves signals to the daemon."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing: uvicorn would raise the signal again at its end, and die of it."""
        yield


async def run_server(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    *,
    drain: Callable[[], Coroutine[Any, Any, None]],
    drain_s: float,
    on_ready: Callable[[], None],
) -> None:
    """Serve ``app`` on open sockets until a signal comes; a second one does not wait.

    :param drain: begun at the signal; within ``drain_s`` it lets running requests finish, then
        it fails those that are left, so that their clients get an answer that says why.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(drain_s + _CUT_OFF_S),
    )
    server = _Server(config, on_ready)
    async with anyio.create_task_group() as tasks:
        await tasks.start(_stop_on_signal, server, tasks, drain)
        await server.serve(sockets=list(sockets))
        tasks.cancel_scope.cancel()


async def _stop_on_signal(
    server: uvicorn.Server,
    tasks: TaskGroup,
    drain: Callable[[], Coroutine[Any, Any, None]],
    *,
    task_status: TaskStatus[None],
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            if server.should_exit:
                log.warning("a second signal: not waiting for running requests")
                server.force_exit = True
            else:
                log.info("%s: stopping", signal.Signals(number).name)
                server.should_exit = True
                tasks.start_soon(drain)
