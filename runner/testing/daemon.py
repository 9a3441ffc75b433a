"""A real daemon for tests: ``with running_daemon(home) as daemon: …``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import psutil

from runner.testing.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Daemon", "is_alive", "run_cli", "running_daemon"]


class Daemon(msgspec.Struct, frozen=True, kw_only=True):
    """A running daemon; made by :func:`running_daemon`."""

    process: subprocess.Popen[bytes]
    home: Path
    socket: str
    #: Its base URL on TCP.
    url: str
    environment: dict[str, str]

    def get(self, path: str) -> Any:
        """A JSON document, over TCP."""
        response = httpx.get(self.url + path, timeout=60)
        response.raise_for_status()
        return response.json()

    def chat(self, content: str, *, prefix: str = "/engines/v1", **fields: Any) -> httpx.Response:
        """Ask for one answer, greedily, over TCP. ``fields`` go into the body."""
        message = {"role": "user", "content": content}
        body = {"model": "embedded/smollm2", "messages": [message], "temperature": 0, **fields}
        return httpx.post(f"{self.url}{prefix}/chat/completions", json=body, timeout=60)

    def ps(self) -> list[dict[str, Any]]:
        """The loaded models."""
        rows: list[dict[str, Any]] = self.get("/engines/ps")
        return rows

    def worker(self) -> psutil.Process:
        """The process of the one loaded model."""
        (row,) = self.ps()
        return psutil.Process(row["pid"])

    def cli(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line against this daemon's home."""
        return run_cli(*arguments, environment=self.environment, **options)


def run_cli(
    *arguments: str,
    environment: Mapping[str, str],
    stdin: str | None = None,
    timeout_s: float = 60,
    python: str = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """Run ``runner`` as a user would, and return what it said."""
    return subprocess.run(
        [python, "-m", "runner", *arguments],
        env=dict(environment),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def running_daemon(
    home: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[Daemon]:
    """``runner serve`` on a free port until the block ends; then nothing of it may be left.

    :param arguments: further arguments of ``runner serve``.
    :param python: the interpreter, for a daemon of another virtual environment.
    :param environment: the whole environment, instead of this process's without Runner's own.
    """
    base = os.environ if environment is None else environment
    env = {
        name: value
        for name, value in base.items()
        if environment is not None or not name.startswith(("RUNNER_", "MODEL"))
    }
    env |= {"RUNNER_HOME": str(home), "RUNNER_STRICT_PLUGINS": "1"}
    read_end, write_end = os.pipe()
    command = [python, "-m", "runner", "serve", "--port", "0", "--ready-fd", str(write_end)]
    process = subprocess.Popen(
        [*command, *arguments],
        env=env,
        pass_fds=[write_end],
        stdin=subprocess.DEVNULL,
    )
    os.close(write_end)
    try:
        with os.fdopen(read_end) as ready:
            told = json.loads(ready.readline() or '{"error": "it ended before it was ready"}')
        assert "error" not in told, told["error"]
        yield Daemon(
            process=process, home=home, socket=told["socket"], url=told["tcp"][0], environment=env
        )
        if process.poll() is None:
            _stop(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM; the daemon must end well, and its children with it."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(30) == 0, f"the daemon ended with {process.returncode}"
    wait_until(lambda: not any(is_alive(child) for child in children), timeout_s=5)
