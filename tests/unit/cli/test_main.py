from __future__ import annotations

import importlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click
import pytest

from runner import __version__
from runner.api.errors import BackendNotFound
from runner.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEAVY = ("httpx", "rich", "litestar", "msgspec", "prompt_toolkit", "anyio")


def run_and_list_modules(*args: str) -> tuple[str, set[str]]:
    code = (
        "import sys\nfrom runner.cli.main import cli\n"
        f"try: cli({list(args)!r}, prog_name='runner')\nexcept SystemExit: pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, set(done.stderr.split())


def test_version_imports_nothing_heavy() -> None:
    output, modules = run_and_list_modules("--version")
    assert output == f"runner {__version__}\n"
    assert modules.isdisjoint(HEAVY)


def test_help_lists_every_command_without_importing_one() -> None:
    output, modules = run_and_list_modules("--help")
    for name, lazy in main.COMMANDS.items():
        assert f"  {name} " in output
        assert lazy.summary in output
        assert lazy.target.partition(":")[0] == "runner.cli.main" or (
            lazy.target.partition(":")[0] not in modules
        )
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", main.COMMANDS)
def test_summary_in_the_list_is_the_commands_own(name: str) -> None:
    command = main.cli.get_command(click.Context(main.cli), name)
    assert command is not None
    assert (command.short_help or command.get_short_help_str(200)) == main.COMMANDS[name].summary


def test_unknown_command_is_a_usage_error(invoke: Any) -> None:
    result = invoke("frobnicate")
    assert result.exit_code == 2
    assert "frobnicate" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_command_shows_the_help_of_another(invoke: Any) -> None:
    assert invoke("help").stdout == invoke("--help").stdout
    assert "Usage: runner pull" in invoke("help", "pull").stdout


def ended_by(error: BaseException, invoke: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    @click.command("boom")
    def boom() -> None:
        raise error

    monkeypatch.setitem(main.COMMANDS, "boom", main.Lazy("runner.cli.main:boom", "Boom."))
    monkeypatch.setattr(main, "boom", boom, raising=False)
    return invoke("boom")


def test_runner_error_is_one_line_and_a_hint(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended_by(BackendNotFound("x", known=("a",)), invoke, monkeypatch)
    assert result.exit_code == 1
    assert result.stderr == (
        'error: backend not found: "x" (installed: a)\n'
        "hint: `runner backends list` shows what is installed\n"
    )


def test_ctrl_c_exits_130_without_traceback(invoke: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = ended_by(KeyboardInterrupt(), invoke, monkeypatch)
    assert result.exit_code == 130
    assert result.stderr.strip() == ""


def test_unexpected_error_shows_traceback_and_asks_for_a_report(
    invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ended_by(ZeroDivisionError("oops"), invoke, monkeypatch)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "This is a bug in Runner" in result.stderr


def test_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "runner", "--help"]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert done.stderr == b""


def install_command(site: Path, body: str) -> None:
    info = site / "stranger-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[runner.commands]\nhello = stranger_cmd:hello\n")
    (site / "stranger_cmd.py").write_text(body)


@pytest.fixture
def strange_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    yield site
    sys.modules.pop("stranger_cmd", None)
    importlib.invalidate_caches()


def test_command_of_another_distribution_joins_the_group(invoke: Any, strange_site: Path) -> None:
    body = "import click\n@click.command()\ndef hello():\n    click.echo('hi there')\n"
    install_command(strange_site, body)
    listing = invoke("--help").stdout
    assert "hello" in listing
    assert "(from stranger 1.2)" in listing
    assert "stranger_cmd" not in sys.modules
    assert invoke("hello").stdout == "hi there\n"


def test_broken_command_of_another_distribution_is_named(invoke: Any, strange_site: Path) -> None:
    install_command(strange_site, "raise ImportError('no such thing')\n")
    result = invoke("hello")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the command hello (from stranger 1.2) cannot be loaded")
    assert invoke("--help").exit_code == 0
