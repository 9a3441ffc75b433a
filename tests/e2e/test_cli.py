"""The command line as a user types it, against real daemons."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

from runner.testing.daemon import is_alive, run_cli
from runner.testing.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runner.testing.daemon import Daemon

pytestmark = pytest.mark.model
MODEL = "embedded/smollm2"
FRANCE = "What is the capital of France? Answer in one word."
GREEDY = ("--temperature", "0", "--max-tokens", "30")


@pytest.fixture
def lone_home(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A home without a daemon, on a port of its own; whatever daemon it gets is stopped."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNNER_", "MODEL"))}
    env |= {"RUNNER_HOME": str(tmp_path / "home"), "RUNNER_STRICT_PLUGINS": "1"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text("port = 0\n")
    yield env
    run_cli("stop", environment=env)


def test_run_answers_and_starts_a_daemon_saying_so(lone_home: dict[str, str]) -> None:
    run = run_cli("run", *GREEDY, MODEL, FRANCE, environment=lone_home)
    assert run.returncode == 0, run.stderr
    assert "Paris" in run.stdout
    assert "daemon" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    again = run_cli("run", *GREEDY, MODEL, "Say hi.", environment=lone_home)
    assert again.stdout.strip()
    assert again.stderr == ""


def test_two_commands_at_once_start_one_daemon(lone_home: dict[str, str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: run_cli("list", environment=lone_home), range(4)))
    assert [run.returncode for run in runs] == [0] * 4, runs
    home = lone_home["RUNNER_HOME"]
    daemons = [
        p.pid
        for p in psutil.process_iter(["cmdline", "environ"])
        if (p.info["environ"] or {}).get("RUNNER_HOME") == home
        and "serve" in (p.info["cmdline"] or [])
    ]
    assert len(daemons) == 1


def test_stop_ends_the_daemon_and_its_workers(lone_home: dict[str, str]) -> None:
    run_cli("run", *GREEDY, MODEL, "Say hi.", environment=lone_home)
    rows = json.loads(run_cli("ps", "--json", environment=lone_home).stdout)
    worker = psutil.Process(rows[0]["pid"])
    assert run_cli("stop", environment=lone_home).returncode == 0
    wait_until(lambda: not is_alive(worker), timeout_s=5)
    status = run_cli("status", environment=lone_home)
    assert status.returncode == 1
    assert "not running" in status.stdout + status.stderr


def test_piped_input_is_added_to_the_prompt(daemon: Daemon) -> None:
    run = daemon.cli(
        "run", *GREEDY, MODEL, "Answer in one word:", stdin="What is the capital of France?\n"
    )
    assert "Paris" in run.stdout


def test_a_failed_pull_ends_with_one_error_and_never_with_a_chat(daemon: Daemon) -> None:
    run = daemon.cli("run", "ai/nothing-here", "hi")
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.count("error:") == 1
    assert "ai/nothing-here" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_life_of_a_model_from_a_file(
    daemon: Daemon, smollm2_path: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "My_Model.gguf"
    weights.write_bytes(smollm2_path.read_bytes())
    pulled = daemon.cli("pull", str(weights))
    assert pulled.returncode == 0, pulled.stderr
    assert "file/my_model" in pulled.stdout
    weights.unlink()
    assert "file/my_model" in daemon.cli("list").stdout
    assert "Paris" in daemon.cli("run", *GREEDY, "file/my_model", FRANCE).stdout
    inspected = json.loads(daemon.cli("inspect", "file/my_model").stdout)
    assert inspected["config"]["architecture"] == "llama"
    assert "file/my_model" in daemon.cli("ps").stdout
    assert "Unloaded 1 model" in daemon.cli("unload", "file/my_model").stdout
    assert daemon.cli("rm", "file/my_model").returncode == 0
    assert "file/my_model" not in daemon.cli("list").stdout
    gone = daemon.cli("inspect", "file/my_model")
    assert gone.returncode == 1


def test_a_file_that_is_no_model_is_refused_with_the_reason(daemon: Daemon, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"PK\x03\x04 surely not a model")
    run = daemon.cli("pull", str(bad))
    assert run.returncode == 1
    assert "zip" in run.stderr.lower()
    assert "file/bad" not in daemon.cli("list").stdout


def test_tables_and_json_say_the_same(daemon: Daemon) -> None:
    table = daemon.cli("list").stdout
    assert table.splitlines()[0].split()[:2] == ["MODEL", "PARAMETERS"]
    assert MODEL in table
    assert any(MODEL in str(row["tags"]) for row in json.loads(daemon.cli("list", "--json").stdout))
    backends = json.loads(daemon.cli("backends", "list", "--json").stdout)
    llama = next(row for row in backends if row["name"] == "llama.cpp")
    assert llama["is_default"]
    assert llama["is_supported"]
    assert "cpu" in llama["devices"]
    assert "llama-cpp-python" in llama["engine"]
    assert "llama.cpp" in daemon.cli("backends", "list").stdout
    plugins = json.loads(daemon.cli("plugins", "list", "--json").stdout)
    assert {"embedded", "file", "llama.cpp"} <= {row["name"] for row in plugins}
    assert "active" in daemon.cli("plugins", "list").stdout
    assert "Server:" in daemon.cli("version").stdout
    assert "running" in daemon.cli("status").stdout


def test_detach_loads_the_model_and_says_nothing_else(daemon: Daemon) -> None:
    daemon.cli("unload", "--all")
    run = daemon.cli("run", "--detach", MODEL)
    assert run.returncode == 0, run.stderr
    assert [row["state"] for row in daemon.ps()] == ["ready"]


def test_logs_show_the_daemon_and_the_engine(daemon: Daemon) -> None:
    daemon.cli("run", *GREEDY, MODEL, "hi")
    assert "POST" in daemon.cli("logs", "--no-engines").stdout


def test_ctrl_c_stops_the_answer_and_frees_the_sequence(daemon: Daemon) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "run", MODEL, "Write a very long essay about the sea."],
        env=daemon.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    wait_until(lambda: daemon.ps()[0]["sequences"] == 0, timeout_s=2)


def test_a_chat_on_a_terminal_answers_until_bye(daemon: Daemon) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "run", *GREEDY, MODEL],
        env=daemon.environment | {"TERM": "xterm", "NO_COLOR": "1"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    screen = ""

    def until(text: str) -> None:
        nonlocal screen
        deadline = time.monotonic() + 30
        while text not in screen:
            assert time.monotonic() < deadline, screen
            screen += os.read(leader, 4096).decode(errors="replace")

    try:
        until("/bye")
        until("> ")
        os.write(leader, FRANCE.encode() + b"\r")
        until("Paris")
        os.write(leader, b"/bye\r")
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
