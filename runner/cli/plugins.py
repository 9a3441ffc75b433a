"""``runner backends`` and ``runner plugins``: what is installed, and what it can do here."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from runner.cli.daemon import connect
from runner.cli.tables import print_json, print_table

__all__ = ["backends", "plugins"]


class BackendRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a table shows of one backend."""

    name: str
    engine: str = ""
    formats: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    is_supported: bool
    devices: tuple[str, ...] = ()
    reason: str = ""
    is_default: bool = False


class PluginRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a table shows of one plugin."""

    name: str
    distribution: str = ""
    version: str = ""
    hooks: tuple[str, ...] = ()
    status: str
    error: str | None = None


@click.group(short_help="Show the backends that can run models.")
def backends() -> None:
    """Show the backends that can run models."""


@backends.command("list", short_help="List the backends.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's JSON.")
def list_backends(*, as_json: bool) -> None:
    """List the backends: engine, formats, and whether this machine supports them."""
    with connect() as client:
        answer = client.get("/runner/backends", Any if as_json else list[BackendRow])
    if as_json:
        print_json(answer)
        return
    if not answer:
        click.echo("No backend can be used; `runner plugins list` says why.", err=True)
    print_table(
        ("BACKEND", "ENGINE", "FORMATS", "MODES", "SUPPORTED", "DEVICES", "DEFAULT", "DETAILS"),
        [
            (
                row.name,
                row.engine,
                ",".join(row.formats),
                ",".join(row.modes),
                "yes" if row.is_supported else "no",
                ",".join(row.devices),
                "*" if row.is_default else "",
                row.reason,
            )
            for row in answer
        ],
    )


@click.group(short_help="Show the installed plugins.")
def plugins() -> None:
    """Show the installed plugins."""


@plugins.command("list", short_help="List the plugins.")
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's JSON.")
def list_plugins(*, as_json: bool) -> None:
    """List the plugins, with the reason for each that failed."""
    with connect() as client:
        answer = client.get("/runner/plugins", Any if as_json else list[PluginRow])
    if as_json:
        print_json(answer)
        return
    print_table(
        ("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS", "ERROR", "HOOKS"),
        [
            (
                row.name,
                row.distribution,
                row.version,
                row.status,
                row.error or "",
                ",".join(hook.removeprefix("runner_") for hook in row.hooks),
            )
            for row in answer
        ],
    )
