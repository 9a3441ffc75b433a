"""The command ``runner``: a group that imports a command's module only when it is run.

``runner --help`` must answer at once, so the one-line summaries live here, beside the place each
command is imported from. Third-party commands join through the entry point group
``runner.commands`` (the entry point's name is the command's).
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from runner import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.metadata import EntryPoint

__all__ = ["LazyGroup", "cli", "main"]


class Lazy(NamedTuple):
    """Where a command is, and what ``--help`` says of it."""

    target: str
    summary: str


COMMANDS = {
    "run": Lazy("runner.cli.run:run", "Run a model with a prompt, or chat with it."),
    "pull": Lazy("runner.cli.pull:pull", "Download a model, or take in a file."),
    "list": Lazy("runner.cli.models:list_models", "List the models available locally."),
    "inspect": Lazy("runner.cli.models:inspect", "Show everything known about a model."),
    "rm": Lazy("runner.cli.models:rm", "Remove downloaded models."),
    "ps": Lazy("runner.cli.loaded:ps", "List the models that are loaded."),
    "unload": Lazy("runner.cli.loaded:unload", "Unload models from memory."),
    "start": Lazy("runner.cli.control:start", "Start the daemon in the background."),
    "stop": Lazy("runner.cli.control:stop", "Stop the daemon."),
    "status": Lazy("runner.cli.control:status", "Check whether the daemon is running."),
    "serve": Lazy("runner.cli.serve:serve", "Run the daemon in the foreground."),
    "logs": Lazy("runner.cli.logs:logs", "Show what the daemon and the engines have logged."),
    "backends": Lazy("runner.cli.plugins:backends", "Show the backends that can run models."),
    "plugins": Lazy("runner.cli.plugins:plugins", "Show the installed plugins."),
    "version": Lazy("runner.cli.control:version", "Show the versions of command and daemon."),
    "help": Lazy("runner.cli.main:help_command", "Show help for a command."),
}
ALIASES = {"ls": "list"}


class LazyGroup(click.Group):
    """A group whose commands are named in :data:`COMMANDS` or by entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Our own in the order of ``--help``, then those of others."""
        return [*COMMANDS, *sorted(_third_party())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if lazy := COMMANDS.get(ALIASES.get(cmd_name, cmd_name)):
            module, _, attribute = lazy.target.partition(":")
            command = getattr(importlib.import_module(module), attribute)
            assert isinstance(command, click.Command)
            return command
        point = _third_party().get(cmd_name)
        return None if point is None else _load(point)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list without importing a command."""
        rows = [(name, lazy.summary) for name, lazy in COMMANDS.items()]
        rows += [(name, _origin(point)) for name, point in sorted(_third_party().items())]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the program. Standalone, it ends with the exit status that the outcome deserves."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.Abort:
            # click's word for Ctrl-C; it has ended the line that ^C stands on.
            code = 130
        except click.ClickException as exc:
            exc.show()
            code = exc.exit_code
        except Exception as exc:  # noqa: BLE001 - the program's last handler: explain, then exit
            code = report(exc)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run 'runner COMMAND --help' for more about a command.",
)
@click.version_option(__version__, message="runner %(version)s")
def cli() -> None:
    """Run AI models on your own machine."""


@click.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def help_command(ctx: click.Context, command: Sequence[str]) -> None:
    """Show help for a command."""
    assert ctx.parent is not None
    ctx.parent.command.main([*command, "--help"], prog_name=ctx.parent.info_name)


def main() -> None:
    """Entry point of the command ``runner``."""
    cli.main(prog_name="runner")


def report(exc: Exception) -> int:
    """Print what went wrong to stderr and return the exit status.

    What Runner can explain is one line and perhaps a hint; anything else is a bug and shows where.
    """
    # Imported here: on the way to `runner --version` nothing can be a RunnerError yet.
    from runner.api.errors import RunnerError  # noqa: PLC0415
    from runner.cli.errors import hint_for  # noqa: PLC0415

    if isinstance(exc, RunnerError):
        click.echo(f"error: {exc.message}", err=True)
        if hint := hint_for(exc):
            click.echo(f"hint: {hint}", err=True)
        return 1
    traceback.print_exception(exc)
    python = ".".join(map(str, sys.version_info[:3]))
    click.echo(
        f"\nThis is a bug in Runner {__version__} (Python {python}, {sys.platform}). "
        "Please report it with the lines above and the command you ran.",
        err=True,
    )
    return 1


def _third_party() -> dict[str, EntryPoint]:
    # Costs 20 ms, so only when a name is not ours or all are listed.
    from importlib.metadata import entry_points  # noqa: PLC0415

    points = entry_points(group="runner.commands")
    return {point.name: point for point in points if point.name not in COMMANDS | ALIASES}


def _origin(point: EntryPoint) -> str:
    return (
        f"(from {point.dist.name} {point.dist.version})" if point.dist else f"(from {point.value})"
    )


def _load(point: EntryPoint) -> click.Command:
    from runner.api.errors import PluginLoadFailed  # noqa: PLC0415 - see report()

    try:
        command = point.load()
    except Exception as exc:
        raise PluginLoadFailed(
            f"the command {point.name} {_origin(point)} cannot be loaded: "
            f"{type(exc).__name__}: {exc}"
        ) from exc
    if not isinstance(command, click.Command):
        raise PluginLoadFailed(
            f"the command {point.name} {_origin(point)} is no click command: {point.value}"
        )
    return command
