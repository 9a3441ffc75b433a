from __future__ import annotations

import os
import subprocess
import sys

from runner.testing.waiting import wait_until
from runner.worker.activity import Activity, read_activity


def test_growth_of_cpu_memory_or_io_is_progress() -> None:
    base = Activity(cpu_s=1.0, rss_bytes=1000, io_bytes=10)
    assert Activity(cpu_s=1.5, rss_bytes=1000, io_bytes=10).is_progress_since(base, 1.0)
    assert Activity(cpu_s=1.0, rss_bytes=1001, io_bytes=10).is_progress_since(base, 1.0)
    assert Activity(cpu_s=1.0, rss_bytes=1000, io_bytes=11).is_progress_since(base, 1.0)


def test_an_idle_tick_is_no_progress() -> None:
    base = Activity(cpu_s=1.0, rss_bytes=1000)
    assert not Activity(cpu_s=1.01, rss_bytes=1000).is_progress_since(base, 1.0)
    assert not Activity(cpu_s=1.0, rss_bytes=900).is_progress_since(base, 1.0)


def test_a_busy_process_shows_progress() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        first = read_activity(process.pid)
        try:
            wait_until(lambda: read_activity(process.pid).is_progress_since(first, 1.0))
        finally:
            process.kill()
    assert read_activity(process.pid) == Activity()


def test_this_process_uses_memory() -> None:
    assert read_activity(os.getpid()).rss_bytes > 0
