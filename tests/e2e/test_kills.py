"""Processes that die: the worker, then the daemon."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from runner.testing.daemon import is_alive, running_daemon
from runner.testing.waiting import wait_until

if TYPE_CHECKING:
    from runner.testing.daemon import Daemon

pytestmark = pytest.mark.model


def essay(**fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Write a long essay about rivers."}
    body = {"model": "embedded/smollm2", "messages": [message], "ignore_eos": True}
    return body | {"stream": True, "max_tokens": 2000} | fields


def test_a_killed_worker_fails_its_stream_and_the_next_request_works(fresh_daemon: Daemon) -> None:
    url = f"{fresh_daemon.url}/engines/v1/chat/completions"
    with httpx.stream("POST", url, json=essay(), timeout=60) as response:
        lines = (line for line in response.iter_lines() if line)
        next(lines)
        fresh_daemon.worker().send_signal(signal.SIGKILL)
        rest = list(lines)
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert error["code"] == "worker_died"
    assert "SIGKILL" in error["message"]
    assert "data: [DONE]" not in rest
    again = httpx.post(url, json=essay(stream=False, max_tokens=4), timeout=60)
    assert again.status_code == 200
    assert again.json()["usage"]["completion_tokens"] == 4


def test_a_killed_daemon_leaves_no_process_and_the_next_one_starts(fresh_daemon: Daemon) -> None:
    url = f"{fresh_daemon.url}/engines/v1/chat/completions"
    with httpx.stream("POST", url, json=essay(), timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        worker = fresh_daemon.worker()
        fresh_daemon.process.kill()
        fresh_daemon.process.wait()
        wait_until(lambda: not is_alive(worker), timeout_s=5)
    with running_daemon(fresh_daemon.home) as second:
        assert second.get("/version")["version"]
