"""``runner logs``: what the daemon and the engines have logged."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from runner.cli.daemon import connect
from runner.cli.errors import DaemonNotRunning
from runner.config import load_settings

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["logs"]

SERVICE_LOG = "runner.log"
ENGINE_LOG = "engine.log"
_STAMP = re.compile(r"\[\d{4}-\S+\] ")


@click.command(short_help="Show what the daemon and the engines have logged.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now.")
@click.option("--no-engines", is_flag=True, help="Leave out the engines.")
def logs(*, follow: bool, no_engines: bool) -> None:
    """Show what the daemon and the engines have logged.

    Of a daemon that is gone, the logs it left in this RUNNER_HOME are shown.
    """
    params = {"follow": "true"} if follow else {}
    if no_engines:
        params["no-engines"] = "true"
    try:
        client = connect(start=False)
    except DaemonNotRunning:
        if follow:
            raise
        _show_files(load_settings().log_dir, with_engines=not no_engines)
        return
    with client, client.stream("GET", "/logs", params=params) as response:
        for chunk in response.iter_bytes():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def _show_files(directory: Path, *, with_engines: bool) -> None:
    """Both logs in the order of their time stamps, which begin each line and sort as text."""
    entries: list[str] = []
    for name in (SERVICE_LOG, *([ENGINE_LOG] if with_engines else [])):
        path = directory / name
        if path.exists():
            entries += _entries(path.read_text(encoding="utf-8", errors="replace"))
    if not entries:
        click.echo(f"Nothing has been logged in {directory} yet.", err=True)
    # sorted() is stable: the service comes first where both logged at one moment.
    for entry in sorted(entries, key=lambda entry: entry.partition(" ")[0]):
        click.echo(entry)


def _entries(text: str) -> list[str]:
    """Log entries; a line without a time stamp (a traceback's) belongs to the one before."""
    entries: list[str] = []
    for line in text.splitlines():
        if entries and not _STAMP.match(line):
            entries[-1] += "\n" + line
        else:
            entries.append(line)
    return entries
