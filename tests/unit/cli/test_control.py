"""Starting and stopping, with a daemon that is nothing but the protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runner import __version__
from runner.cli.daemon import DaemonRecord, find_process, process_started, read_record, record_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.config import Settings

#: Stands in for the interpreter: `-P -m runner serve --ready-fd N` reaches it as arguments.
DAEMON = """\
#!{python}
import json, os, pathlib, signal, sys
sys.path[:0] = {path!r}
from http.server import BaseHTTPRequestHandler
from socketserver import UnixStreamServer
from runner.cli.serve import Announcer
from runner.config import load_settings

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({{"version": "{version}", "pid": os.getpid()}}).encode())
    def address_string(self):
        return "unix"
    def log_message(self, *args):
        pass

class Listening:
    tcp = ("http://127.0.0.1:1",)

settings = load_settings()
with open(settings.home / "starts", "a") as starts:
    starts.write(f"{{os.getpid()}} {{os.getsid(0)}} {{' '.join(sys.argv[1:])}}\\n")
announcer = Announcer(settings, int(sys.argv[-1]))
{before}
server = UnixStreamServer(str(settings.socket_path), Handler)
listening = Listening()
listening.socket = settings.socket_path
announcer.ready(listening)
signal.signal(signal.SIGTERM, {on_term})
try:
    server.serve_forever(0.02)
finally:
    settings.socket_path.unlink()
"""


class Home:
    """A home whose commands start the stand-in."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self._interpreter = directory / "python"

    def install(self, *, before: str = "", on_term: str = "lambda *_: sys.exit(0)") -> None:
        text = DAEMON.format(
            python=sys.executable,
            path=sys.path,
            version=__version__,
            before=before,
            on_term=on_term,
        )
        self._interpreter.write_text(text)
        self._interpreter.chmod(0o755)

    def command(self, *args: str) -> subprocess.Popen[str]:
        code = textwrap.dedent(f"""\
            import sys
            sys.executable = {str(self._interpreter)!r}
            from runner.cli.main import cli
            cli({list(args)!r}, prog_name="runner")
            """)
        return subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *args: str) -> tuple[int, str, str]:
        with self.command(*args) as process:
            stdout, stderr = process.communicate(timeout=60)
            return process.returncode, stdout, stderr

    @property
    def starts(self) -> list[list[str]]:
        path = self.settings.home / "starts"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def home(settings: Settings, tmp_path: Path) -> Iterator[Home]:
    home = Home(settings, tmp_path)
    home.install()
    yield home
    for pid, *_ in home.starts:
        try:
            process = psutil.Process(int(pid))
            process.kill()
            process.wait(10)
        except psutil.NoSuchProcess:
            pass


def test_command_that_needs_a_daemon_starts_one_and_says_so(home: Home) -> None:
    code, stdout, stderr = home.run("start")
    assert (code, stderr) == (0, "Starting the Runner daemon…\n")
    assert stdout.startswith("Runner is running: ")
    assert stdout.endswith(", http://127.0.0.1:1\n")
    ((pid, session, *args),) = home.starts
    assert pid == session
    assert args[:4] == ["-P", "-m", "runner", "serve"]
    assert home.run("start")[1].startswith("Runner was already running: ")
    assert len(home.starts) == 1


def test_daemon_holds_none_of_the_commands_descriptors(home: Home) -> None:
    # communicate() in run() returns only when nobody holds the pipes any more.
    assert home.run("start")[0] == 0
    ((pid, *_),) = home.starts
    targets = {fd.name: str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert targets["0"] == os.devnull
    assert targets["1"] == targets["2"] == str(home.settings.log_dir / "daemon.out")
    assert not [target for target in targets.values() if target.startswith("pipe:")]


def test_two_at_once_start_one(home: Home) -> None:
    with home.command("start") as first, home.command("start") as second:
        outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert len(home.starts) == 1
    assert sorted(stderr for _, stderr in outputs) == ["", "Starting the Runner daemon…\n"]


def test_reason_why_a_daemon_cannot_start_reaches_the_user(home: Home) -> None:
    home.install(before="announcer.failed('another daemon (pid 1) owns the store'); sys.exit(1)")
    code, _, stderr = home.run("start")
    assert code == 1
    assert stderr.splitlines()[1] == (
        "error: the daemon cannot start: another daemon (pid 1) owns the store"
    )


def test_daemon_that_crashes_early_shows_its_last_words(home: Home) -> None:
    home.install(before="sys.exit('cannot go on')")
    code, _, stderr = home.run("start")
    assert code == 1
    assert "error: the daemon ended with status 1 before it was ready:\ncannot go on\n" in stderr


def test_stop_ends_the_daemon_and_forgets_it(home: Home) -> None:
    home.run("start")
    ((pid, *_),) = home.starts
    assert read_record(home.settings) is not None
    assert home.run("stop") == (0, "Runner stopped.\n", "")
    assert not psutil.pid_exists(int(pid))
    assert not record_path(home.settings).exists()
    assert home.run("stop") == (0, "Runner is not running.\n", "")


def test_stop_says_what_does_not_stop(home: Home) -> None:
    home.install(on_term="signal.SIG_IGN")
    home.run("start")
    ((pid, *_),) = home.starts
    code, _, stderr = home.run("stop", "--timeout", "0.3")
    assert code == 1
    assert f"(pid {pid}) has not stopped within 0.3 s" in stderr
    assert psutil.pid_exists(int(pid))


def write_record(settings: Settings, pid: int, started: float) -> None:
    record = {"pid": pid, "started": started, "version": "0", "socket": None, "tcp": []}
    record_path(settings).write_text(json.dumps(record))


def test_stale_record_of_a_reused_pid_is_never_signalled(settings: Settings, invoke: Any) -> None:
    write_record(settings, os.getpid(), process_started(os.getpid()) - 60)
    assert find_process(settings) is None
    assert invoke("stop").stdout == "Runner is not running.\n"
    assert not record_path(settings).exists()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_unreadable_record_counts_as_none(settings: Settings, content: str) -> None:
    record_path(settings).write_text(content)
    assert find_process(settings) is None


def test_record_finds_a_daemon_that_does_not_answer(settings: Settings) -> None:
    write_record(settings, os.getpid(), process_started(os.getpid()))
    found = find_process(settings)
    assert found is not None
    assert found.pid == os.getpid()


def test_explicit_host_is_never_started(
    invoke: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNER_HOST", f"unix://{settings.home}/other.sock")
    result = invoke("list")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no daemon answers at unix:///")
    assert "RUNNER_HOST" in result.stderr
    for verb in ("start", "stop"):
        assert "acts on this machine's own daemon only" in invoke(verb).stderr
    assert not (settings.home / "start.lock").exists()


def test_status_of_a_running_daemon(invoke: Any, fake: Any) -> None:
    states = {"b": "Not Installed: binary not found", "a": "Running: a 1.0", "c": "Error: d: e"}
    fake.json("GET", "/engines/status", states)
    assert invoke("status").stdout.splitlines() == [
        "Runner is running",
        "",
        "BACKEND  STATUS         DETAILS",
        "a        Running        a 1.0",
        "c        Error          d: e",
        "b        Not Installed  binary not found",
    ]
    status = json.loads(invoke("status", "--json").stdout)
    assert status["running"] is True
    assert status["backends"] == states
    assert status["endpoint"].startswith("unix:///")


def test_status_starts_no_daemon(invoke: Any, settings: Settings) -> None:
    result = invoke("status")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: Runner is not running\nhint: start it with `runner start`\n"
    result = invoke("status", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["running"] is False
    assert not (settings.home / "start.lock").exists()


def test_version_of_both_sides(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/version", {"version": "9.9"})
    output = invoke("version").stdout
    assert f"Client:\n Version:   {__version__}\n" in output
    assert "Server:\n Version:   9.9\n" in output


def test_version_without_a_daemon(invoke: Any, settings: Settings) -> None:
    assert " Version:   (not reachable)\n" in invoke("version").stdout


def test_daemon_of_another_version_is_told_once(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/version", {"version": "9.9"})
    fake.json("GET", "/models", [])
    stderr = invoke("list").stderr
    assert stderr.count("warning: the daemon is version 9.9, this command") == 1
    assert "runner stop" in stderr


def test_records_survive_a_round_trip(settings: Settings) -> None:
    write_record(settings, 1, 2.5)
    expected = DaemonRecord(pid=1, started=2.5, version="0", socket=None, tcp=())
    assert read_record(settings) == expected
