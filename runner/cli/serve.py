"""``runner serve``: the daemon in this very process."""

from __future__ import annotations

import importlib.util
import os
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import anyio
import click
import msgspec

from runner import __version__
from runner.api.errors import RunnerError
from runner.cli.daemon import DaemonRecord, Ready, process_started, read_record, record_path
from runner.config import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from runner.config import Settings

__all__ = ["serve"]


class Listening(Protocol):
    """Where the server listens, as it tells when it is ready."""

    @property
    def socket(self) -> object:
        """The Unix socket's path."""

    @property
    def tcp(self) -> Sequence[str]:
        """Base URLs."""


class Announcer:
    """Tells whoever waits that the daemon is ready, or why it is not; exactly once.

    :param ready_fd: the pipe of the command that started it; None in the foreground.
    """

    def __init__(self, settings: Settings, ready_fd: int | None) -> None:
        self._settings = settings
        self._ready_fd = ready_fd

    def ready(self, listening: Listening) -> None:
        """Write the record, then say where the daemon listens."""
        socket = None if listening.socket is None else str(listening.socket)
        tcp = tuple(listening.tcp)
        pid = os.getpid()
        record = DaemonRecord(
            pid=pid, started=process_started(pid), version=__version__, socket=socket, tcp=tcp
        )
        path = record_path(self._settings)
        draft = path.with_name(f".daemon.{pid}.json")
        draft.write_bytes(msgspec.json.encode(record) + b"\n")
        draft.replace(path)
        self._tell(Ready(pid=pid, socket=socket, tcp=tcp))
        for where in (*tcp, *([f"unix://{socket}"] if socket else [])):
            click.echo(f"Listening on {where}")

    def failed(self, message: str) -> None:
        """Say why it never became ready; nothing if it did."""
        self._tell(Ready(pid=os.getpid(), error=message))

    def _tell(self, ready: Ready) -> None:
        if self._ready_fd is None:
            return
        # The command that waits may have been interrupted: nobody reads then, and that is fine.
        with suppress(OSError), os.fdopen(self._ready_fd, "wb") as pipe:
            pipe.write(msgspec.json.encode(ready) + b"\n")
        self._ready_fd = None


@click.command(short_help="Run the daemon in the foreground.")
@click.option(
    "--host", metavar="ADDRESS", help="TCP address to listen on.  [default: 127.0.0.1 and ::1]"
)
@click.option(
    "--port", type=click.IntRange(0, 65535), help="TCP port; 0 takes a free one.  [default: 12434]"
)
@click.option(
    "--socket", "socket_path", type=click.Path(path_type=Path), help="Path of the Unix socket."
)
@click.option("--no-tcp", is_flag=True, help="Listen on the Unix socket only.")
@click.option(
    "--models-path",
    type=click.Path(path_type=Path),
    help="Where models are stored.  [default: MODELS_PATH]",
)
@click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Serve beyond this machine without an API key (RUNNER_API_KEY): to anyone who connects.",
)
@click.option("--ready-fd", type=int, hidden=True)
def serve(
    *,
    host: str | None,
    port: int | None,
    socket_path: Path | None,
    no_tcp: bool,
    models_path: Path | None,
    allow_unauthenticated: bool,
    ready_fd: int | None,
) -> None:
    """Run the daemon in the foreground until it is interrupted.

    Models are served on a Unix socket and on TCP at once. RUNNER_HOME, MODELS_PATH, RUNNER_API_KEY
    and the file config.toml in RUNNER_HOME set what the options do not.
    """
    settings = load_settings(
        overrides={
            "host": host,
            "port": port,
            "socket_path": socket_path and socket_path.expanduser().absolute(),
            "tcp": False if no_tcp else None,
            "models_path": models_path and models_path.expanduser().absolute(),
            "allow_unauthenticated": allow_unauthenticated or None,
        }
    )
    announcer = Announcer(settings, ready_fd)
    with _failures_told(announcer):
        if ready_fd is not None:
            # Only now: settings may have held paths relative to the user's directory.
            os.chdir("/")
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _run(settings, announcer)
        finally:
            record = read_record(settings)
            if record is not None and record.pid == os.getpid():
                record_path(settings).unlink(missing_ok=True)


def _run(settings: Settings, announcer: Announcer) -> None:
    # The server brings Litestar with it, 0.3 s that no other command should wait for.
    from runner.server.serve import serve as run_server  # noqa: PLC0415

    use_uvloop = importlib.util.find_spec("uvloop") is not None
    anyio.run(
        partial(run_server, settings, on_ready=announcer.ready),
        backend_options={"use_uvloop": use_uvloop},
    )


@contextmanager
def _failures_told(announcer: Announcer) -> Iterator[None]:
    try:
        yield
    except BaseExceptionGroup as group:
        error = _only(group)
        announcer.failed(_words(error))
        raise error from group
    except BaseException as error:
        announcer.failed(_words(error))
        raise


def _only(error: BaseException) -> BaseException:
    """The single exception inside nested groups, else the group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _words(error: BaseException) -> str:
    return error.message if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
