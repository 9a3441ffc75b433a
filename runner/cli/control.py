"""``runner start``, ``stop``, ``status`` and ``version``: the daemon itself."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from runner import __version__
from runner.api.errors import RunnerError
from runner.cli.client import Client
from runner.cli.daemon import find_process, read_record, record_path, start_daemon, wait_for_exit
from runner.cli.errors import DaemonError, DaemonNotRunning, DaemonUnreachable
from runner.cli.loaded import LoadedModel
from runner.cli.tables import print_json, print_table
from runner.cli.words import familiar_name
from runner.config import Address, load_settings

if TYPE_CHECKING:
    from runner.config import Settings

__all__ = ["start", "status", "stop", "version"]

#: What stopping may take beyond the time that running requests are given.
STOP_MARGIN_S = 15.0
_STATUS_ORDER = ("Running", "Error", "Not Installed", "Installing")


@click.command(short_help="Start the daemon in the background.")
def start() -> None:
    """Start the daemon in the background.

    Other commands do this by themselves when they need one.
    """
    settings = load_settings()
    _refuse_remote(settings, "start")
    was_started = start_daemon(settings)
    record = read_record(settings)
    where = [str(settings.socket_path), *(record.tcp if record else ())]
    click.echo(f"Runner {'is' if was_started else 'was already'} running: {', '.join(where)}")


@click.command(short_help="Stop the daemon.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to wait for its end.",
)
def stop(timeout: float | None) -> None:
    """Stop the daemon, once the requests that are running have finished."""
    import psutil  # noqa: PLC0415 - see daemon.process_started

    settings = load_settings()
    _refuse_remote(settings, "stop")
    process = find_process(settings)
    if process is None:
        record_path(settings).unlink(missing_ok=True)
        click.echo("Runner is not running.")
        return
    limit_s = settings.drain_s + STOP_MARGIN_S if timeout is None else timeout
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    try:
        for passed_s in wait_for_exit(process, limit_s):
            if sys.stderr.isatty():
                busy = _what_runs(settings)
                click.echo(f"\r\x1b[KWaiting for {busy} ({passed_s:.0f} s)…", nl=False, err=True)
    except TimeoutError:
        raise DaemonError(
            f"the daemon (pid {process.pid}) has not stopped within {limit_s:g} s: "
            f"{_what_runs(settings)} still running. It stops when that ends; "
            f"`kill -9 {process.pid}` ends it now"
        ) from None
    finally:
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)
    record = read_record(settings)
    if record is not None and record.pid == process.pid:
        record_path(settings).unlink(missing_ok=True)
    click.echo("Runner stopped.")


@click.command(short_help="Check whether the daemon is running.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(*, as_json: bool) -> None:
    """Check whether the daemon is running, and what its backends say. Never starts one."""
    settings = load_settings()
    with Client(settings.address, api_key=settings.api_key) as client:
        info = client.server_info()
        backends: dict[str, str] = (
            {} if info is None else client.get("/engines/status", dict[str, str])
        )
    if as_json:
        endpoint = _endpoint(settings.address)
        print_json(
            {
                "running": info is not None,
                "backends": backends,
                "kind": "Runner",
                "endpoint": endpoint,
                "version": info.version if info else None,
                "pid": info.pid if info else None,
            }
        )
        if info is None:
            sys.exit(1)
        return
    if info is None:
        if settings.remote is not None:
            raise DaemonUnreachable(f"no daemon answers at {settings.address}")
        raise DaemonNotRunning
    click.echo("Runner is running")
    click.echo()
    rows = [(name, *_split_status(text)) for name, text in backends.items()]
    rows.sort(
        key=lambda row: (_STATUS_ORDER.index(row[1]) if row[1] in _STATUS_ORDER else 9, row[0])
    )
    print_table(("BACKEND", "STATUS", "DETAILS"), rows)


@click.command(short_help="Show the versions of command and daemon.")
def version() -> None:
    """Show the versions of this command and of the daemon."""
    settings = load_settings()
    info = None
    with suppress(RunnerError), Client(settings.address, api_key=settings.api_key) as client:
        info = client.server_info()
    click.echo("Client:")
    click.echo(f" Version:   {__version__}")
    click.echo(f" Python:    {platform.python_version()}")
    click.echo(f" OS/Arch:   {platform.system().lower()}/{platform.machine()}")
    click.echo()
    click.echo("Server:")
    click.echo(f" Version:   {info.version if info else '(not reachable)'}")
    click.echo(f" Endpoint:  {settings.address}")


def _refuse_remote(settings: Settings, verb: str) -> None:
    if settings.remote is not None:
        raise DaemonError(
            f"RUNNER_HOST is set to {settings.remote}: `runner {verb}` acts on this machine's own "
            "daemon only; unset it first"
        )


def _endpoint(address: Address) -> str:
    return address.url or f"unix://{address.socket}"


def _split_status(text: str) -> tuple[str, str]:
    """``Running: llama.cpp 0.3`` is two columns."""
    state, _, details = text.partition(":")
    return state.strip(), details.strip()


def _what_runs(settings: Settings) -> str:
    """The models that answer requests, for a daemon that is slow to stop."""
    names: list[str] = []
    with suppress(RunnerError), Client(Address(socket=settings.socket_path)) as client:
        loaded: list[LoadedModel] = client.get("/engines/ps", list[LoadedModel])
        names = [familiar_name(model.model_name) for model in loaded if model.in_use]
    return ", ".join(names) or "the daemon"
