"""The background daemon of this ``RUNNER_HOME``: reach it, start it, stop it.

The daemon says once, on a pipe it inherits, that it is ready or why it is not; nothing polls. What
it wrote into ``daemon.json`` is believed only after a check, since a process id outlives its owner.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click
import msgspec

from runner import __version__
from runner.cli.client import Client, ServerInfo
from runner.cli.errors import DaemonError, DaemonNotRunning, DaemonUnreachable
from runner.config import Address, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psutil

    from runner.config import Settings

__all__ = [
    "DaemonRecord",
    "Ready",
    "connect",
    "find_process",
    "process_started",
    "read_record",
    "record_path",
    "start_daemon",
    "wait_for_exit",
]

#: From spawn to the line on the pipe: imports, store lock, sockets.
START_TIMEOUT_S = 60.0
#: A clock step moves what the system says of a start time; a reused pid is off by far more.
_CLOCK_TOLERANCE_S = 2.0


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The one line a starting daemon writes: where it listens, or why it does not."""

    pid: int
    socket: str | None = None
    tcp: tuple[str, ...] = ()
    error: str | msgspec.UnsetType = msgspec.UNSET


class DaemonRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``daemon.json``: the daemon that runs in this home, written when it is ready."""

    pid: int
    #: Start of the process in Unix time, which tells it from a later one with the same pid.
    started: float
    version: str
    socket: str | None
    tcp: tuple[str, ...]


def connect(*, start: bool = True) -> Client:
    """A client of the daemon that the settings name. The caller closes it.

    :param start: start this home's own daemon if it is not up. An explicit host is never started.
    :raises DaemonUnreachable: nothing answers at an explicit host.
    :raises DaemonNotRunning: this home's daemon is not up, and was not to be started.
    """
    settings = load_settings()
    client = Client(settings.address, api_key=settings.api_key)
    try:
        info = client.server_info()
        if info is None and settings.remote is not None:
            raise DaemonUnreachable(f"no daemon answers at {settings.address}")
        if info is None and not start:
            raise DaemonNotRunning
        if info is None:
            start_daemon(settings)
            info = client.server_info()
        if info is None:
            raise DaemonError(f"the daemon started, but does not answer at {settings.address}")
        _warn_of_another_version(info, settings)
    except BaseException:
        client.__exit__()
        raise
    return client


def start_daemon(settings: Settings) -> bool:
    """Start the daemon of this home and return when it is ready; False if it was up already.

    Of two that start one at the same time, the second waits for the first and uses its daemon.
    """
    # Costs 50 ms and is needed on this rare path only.
    from filelock import FileLock, Timeout  # noqa: PLC0415

    settings.log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with FileLock(settings.home / "start.lock", timeout=START_TIMEOUT_S):
            if own_daemon(settings) is not None:
                return False
            click.echo("Starting the Runner daemon…", err=True)
            _spawn(settings)
            return True
    except Timeout as exc:
        raise DaemonError(
            f"another command has been starting the daemon for {START_TIMEOUT_S:.0f} s; "
            f"see {settings.log_dir / 'daemon.out'}"
        ) from exc


def own_daemon(settings: Settings) -> ServerInfo | None:
    """What answers on this home's own socket, whatever ``RUNNER_HOST`` says."""
    with Client(Address(socket=settings.socket_path)) as client:
        return client.server_info()


def _spawn(settings: Settings) -> None:
    output = settings.log_dir / "daemon.out"
    with suppress(FileNotFoundError):
        output.replace(output.with_suffix(".out.1"))
    reader, writer = os.pipe()
    try:
        with output.open("wb") as sink:
            # -P: the user's directory must not come first on sys.path. The daemon leaves that
            # directory itself, once relative paths in its settings have been resolved.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runner", "serve", "--ready-fd", str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=(writer,),
                start_new_session=True,
            )
        os.close(writer)
        writer = -1
        line = _read_line(reader, time.monotonic() + START_TIMEOUT_S)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if line is None:
        process.terminate()
        raise DaemonError(f"the daemon was not ready within {START_TIMEOUT_S:.0f} s; see {output}")
    if not line:
        code = process.wait(timeout=START_TIMEOUT_S)
        raise DaemonError(f"the daemon ended with status {code} before it was ready{_tail(output)}")
    ready = msgspec.json.decode(line, type=Ready)
    if ready.error is not msgspec.UNSET:
        process.wait(timeout=START_TIMEOUT_S)
        raise DaemonError(f"the daemon cannot start: {ready.error}")
    # It is meant to outlive us; without a status Popen would complain when it is collected.
    process.returncode = 0


def _read_line(fd: int, deadline: float) -> bytes | None:
    """A line from a pipe; empty at its end, None when the deadline passes first."""
    data = b""
    while b"\n" not in data:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        chunk = os.read(fd, 65536)
        if not chunk:
            return b""
        data += chunk
    return data.partition(b"\n")[0]


def _tail(output: Path, n_lines: int = 5) -> str:
    text = output.read_text(encoding="utf-8", errors="replace").strip()
    if not text:
        return f"; {output} is empty"
    return ":\n" + "\n".join(text.splitlines()[-n_lines:]) + f"\n(all of it: {output})"


def _warn_of_another_version(info: ServerInfo, settings: Settings) -> None:
    if info.version == __version__:
        return
    remedy = (
        ""
        if settings.remote is not None
        else "; `runner stop` lets the next command start the new one"
    )
    click.echo(
        f"warning: the daemon is version {info.version}, this command {__version__}{remedy}",
        err=True,
    )


def record_path(settings: Settings) -> Path:
    """Where the daemon of this home leaves its record."""
    return settings.home / "daemon.json"


def read_record(settings: Settings) -> DaemonRecord | None:
    """The record, if there is a readable one; whether it is still true is another matter."""
    try:
        return msgspec.json.decode(record_path(settings).read_bytes(), type=DaemonRecord)
    except (OSError, msgspec.DecodeError):
        return None


def process_started(pid: int) -> float:
    """When a process started, in Unix time.

    :raises psutil.NoSuchProcess: there is no such process.
    """
    import psutil  # noqa: PLC0415 - only to start, stop and look at processes

    return float(psutil.Process(pid).create_time())


def find_process(settings: Settings) -> psutil.Process | None:
    """The daemon of this home as a process: what it answers on its socket, else its record."""
    import psutil  # noqa: PLC0415 - see process_started

    info = own_daemon(settings)
    record = read_record(settings)
    with suppress(psutil.Error):
        if info is not None and info.pid is not None:
            return psutil.Process(info.pid)
        if record is not None:
            process = psutil.Process(record.pid)
            is_same = abs(process.create_time() - record.started) < _CLOCK_TOLERANCE_S
            if is_same and process.status() != psutil.STATUS_ZOMBIE:
                return process
    if info is not None:
        raise DaemonError(
            f"a daemon answers at {settings.socket_path}, but {record_path(settings)} does not say "
            "which process it is: stop it where it was started"
        )
    return None


def wait_for_exit(process: psutil.Process, timeout_s: float) -> Iterator[float]:
    """Wait until a process is gone; yields the seconds passed about once a second until it is.

    :raises TimeoutError: it is still there.
    """
    import psutil  # noqa: PLC0415 - see process_started

    start = time.monotonic()
    while (passed := time.monotonic() - start) < timeout_s:
        try:
            process.wait(timeout=min(1.0, timeout_s - passed))
        except psutil.TimeoutExpired:
            yield time.monotonic() - start
        else:
            return
    raise TimeoutError
