"""``runner ps`` and ``unload``: what is in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from runner.api.errors import RequestError
from runner.cli.daemon import connect
from runner.cli.errors import DaemonNotRunning
from runner.cli.tables import print_json, print_table
from runner.cli.words import binary_size, duration, familiar_name
from runner.config import parse_duration

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LoadedModel", "ps", "unload"]


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``GET /engines/ps``; other servers send only the first half."""

    backend_name: str
    model_name: str
    mode: str = ""
    last_used: str = ""
    in_use: bool = False
    loading: bool = False
    keep_alive: str = ""

    state: str = ""
    sequences: int | None = None
    memory_bytes: int | None = None
    pid: int | None = None


@click.command(short_help="List the models that are loaded.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's JSON.")
def ps(*, as_json: bool) -> None:
    """List the models that are loaded, and what they are doing."""
    try:
        with connect(start=False) as client:
            answer = client.get("/engines/ps", Any if as_json else list[LoadedModel])
    except DaemonNotRunning:
        # Nothing can be loaded then: no reason to start a daemon, or to fail.
        answer = []
    if as_json:
        print_json(answer)
        return
    now = datetime.now(UTC)
    print_table(
        ("MODEL NAME", "BACKEND", "MODE", "UNTIL", "STATE", "SEQUENCES", "MEMORY", "PID"),
        [_row(model, now) for model in answer],
    )


@click.command(short_help="Unload models from memory.")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--all", "unload_all", is_flag=True, help="Unload every model.")
@click.option("--backend", default="", metavar="NAME", help="Only what runs on this backend.")
def unload(models: Sequence[str], *, unload_all: bool, backend: str) -> None:
    """Unload models from memory; they stay in the store."""
    if bool(models) == unload_all:
        raise click.UsageError("name the models to unload, or give --all")
    try:
        with connect(start=False) as client:
            body = {"all": unload_all, "backend": backend, "models": list(models)}
            count = client.post("/engines/unload", body)["unloaded_runners"]
    except DaemonNotRunning:
        count = 0
    if count:
        click.echo(f"Unloaded {count} model(s).")
    else:
        click.echo("No models are running." if unload_all else "No such model(s) running.")


def _row(model: LoadedModel, now: datetime) -> tuple[str, ...]:
    return (
        familiar_name(model.model_name),
        model.backend_name,
        model.mode,
        _until(model, now),
        model.state,
        "" if model.sequences is None else str(model.sequences),
        "" if model.memory_bytes is None else binary_size(model.memory_bytes),
        "" if model.pid is None else str(model.pid),
    )


def _until(model: LoadedModel, now: datetime) -> str:
    """When an idle model will be unloaded; one in use counts as used this moment."""
    if model.loading:
        return "Loading..."
    try:
        keep_s = parse_duration(model.keep_alive or "5m")
        last_used = now if model.in_use else datetime.fromisoformat(model.last_used)
    except (RequestError, ValueError):
        return ""
    if keep_s < 0:
        return "Forever"
    left_s = last_used.timestamp() + keep_s - now.timestamp()
    return f"{duration(left_s)} from now" if left_s > 0 else "Expiring"
