"""What a user waits for besides the model: start-up, listings, the first token, idle memory.

    python bench/overheads.py [--runs 7]

``wrk`` (Debian's package) adds requests per second on ``/engines/v1/models``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from serving import free_port, spawned, wait_ready

if TYPE_CHECKING:
    from collections.abc import Callable

RUNNER = [str(Path(sys.executable).parent / "runner")]


def median_seconds(runs: int, action: Callable[[], float]) -> float:
    return statistics.median(action() for _ in range(runs))


def timed(command: list[str], home: str) -> float:
    start = time.perf_counter()
    subprocess.run(
        command, env=os.environ | {"RUNNER_HOME": home}, check=True, capture_output=True, timeout=60
    )
    return time.perf_counter() - start


def serve_to_listening() -> float:
    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        start = time.perf_counter()
        with spawned([*RUNNER, "serve", "--port", str(port)], RUNNER_HOME=home) as process:
            wait_ready(f"http://127.0.0.1:{port}/version", process)
            return time.perf_counter() - start


def cold_first_token() -> float:
    """From no daemon at all to the first byte of the answer on stdout."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"RUNNER_HOME": home}
        start = time.perf_counter()
        command = [*RUNNER, "run", "embedded/smollm2", "Count to ten."]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert process.stdout is not None
        process.stdout.read(1)
        elapsed = time.perf_counter() - start
        process.communicate(timeout=60)
        subprocess.run([*RUNNER, "stop"], env=environment, check=True, capture_output=True)
        return elapsed


def requests_per_second(port: int) -> str:
    if shutil.which("wrk") is None:
        return "wrk is not installed"
    command = ["wrk", "-t1", "-c16", "-d5s", f"http://127.0.0.1:{port}/engines/v1/models"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    errors = re.search(r"Non-2xx.*", output)
    return f"{float(found[1]):.0f}{' ' + errors[0] if errors else ''}" if found else output


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs

    def command_time(verb: str) -> str:
        return f"{median_seconds(runs, lambda: timed([*RUNNER, verb], home)):.3f} s"

    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        with spawned([*RUNNER, "serve", "--port", str(port)], RUNNER_HOME=home) as process:
            wait_ready(f"http://127.0.0.1:{port}/engines/v1/models", process)
            rows = {
                "runner --version": command_time("--version"),
                "runner list": command_time("list"),
                "daemon idle, RSS": f"{psutil.Process(process.pid).memory_info().rss / 1e6:.0f} MB",
                "/engines/v1/models, requests/s": requests_per_second(port),
            }
    rows["runner serve to listening"] = f"{median_seconds(runs, serve_to_listening):.3f} s"
    rows["cold daemon to first token"] = (
        f"{median_seconds(max(runs // 2, 1), cold_first_token):.3f} s"
    )
    for name, value in rows.items():
        print(f"{name:<32}  {value}")


if __name__ == "__main__":
    main()
