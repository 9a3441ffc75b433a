"""Clients come, leave, unload and kill, all at once: the daemon outlives them and leaks nothing."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest

from runner.testing.daemon import running_daemon
from runner.testing.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from runner.testing.daemon import Daemon

pytestmark = [pytest.mark.model, pytest.mark.soak, pytest.mark.timeout(1200)]

MODEL = "embedded/smollm2"
#: What a request may end with while others unload and kill: an answer, a worker that died or was
#: unloaded under it, or a crash loop's back-off.
ALLOWED = {"ok", "left", "worker_died", "worker_start_failed", "conflict", "no_memory_now"}


class Client:
    """One user, who does something random again and again."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self._url = daemon.url
        self._daemon = daemon
        self._random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def run(self, until: float) -> None:
        actions = [self.ask, self.ask, self.stream, self.leave, self.embed]
        while time.monotonic() < until:
            self.outcomes[self._random.choice(actions)()] += 1

    def _body(self, **fields: Any) -> dict[str, Any]:
        words = "word " * self._random.choice([1, 5, 50, 300])
        message = {"role": "user", "content": f"{self._random.random()} {words}"}
        body = {"model": MODEL, "messages": [message], "max_tokens": self._random.randint(1, 40)}
        return body | fields

    def ask(self) -> str:
        answer = httpx.post(f"{self._url}/v1/chat/completions", json=self._body(), timeout=120)
        return self._outcome(answer)

    def stream(self) -> str:
        body = self._body(stream=True, n=2)
        with httpx.stream(
            "POST", f"{self._url}/v1/chat/completions", json=body, timeout=120
        ) as answer:
            lines = [line for line in answer.iter_lines() if line]
        if answer.status_code == 200 and lines[-1] == "data: [DONE]":
            return "ok"
        # The error envelope: the whole body before the first event, the last line after it.
        return str(json.loads(lines[-1].removeprefix("data: "))["error"]["code"])

    def leave(self) -> str:
        body = self._body(stream=True, max_tokens=500)
        with httpx.stream(
            "POST", f"{self._url}/v1/chat/completions", json=body, timeout=120
        ) as answer:
            lines = answer.iter_lines()
            next(lines, None)
        return "left"

    def embed(self) -> str:
        body = {"model": MODEL, "input": ["a", "b " * self._random.randint(1, 100)]}
        return self._outcome(httpx.post(f"{self._url}/v1/embeddings", json=body, timeout=120))

    def _outcome(self, answer: httpx.Response) -> str:
        return "ok" if answer.status_code == 200 else str(answer.json()["error"]["code"])


def disturb(daemon: Daemon, until: float, seed: int) -> None:
    """Unload the model, or kill its worker, every few seconds."""
    chance = random.Random(seed)
    while time.monotonic() + 3 < until:
        time.sleep(chance.uniform(2, 4))
        if chance.random() < 0.5:
            httpx.post(f"{daemon.url}/engines/unload", json={"all": True}, timeout=60)
        else:
            for row in daemon.ps():
                if row["pid"] is not None:
                    psutil.Process(row["pid"]).kill()


def test_nothing_is_lost_or_leaked(tmp_path: Path, soak_s: float) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        daemon.chat("hi", max_tokens=1)
        process = psutil.Process(daemon.process.pid)
        before = process.memory_info().rss
        clients = [Client(daemon, seed) for seed in range(8)]
        until = time.monotonic() + soak_s
        with ThreadPoolExecutor(len(clients) + 1) as pool:
            futures = [pool.submit(client.run, until) for client in clients]
            futures.append(pool.submit(disturb, daemon, until, 99))
            for future in futures:
                future.result()
        outcomes = sum((client.outcomes for client in clients), Counter[str]())
        assert set(outcomes) <= ALLOWED, outcomes
        assert outcomes["ok"] > 5, outcomes
        # A worker killed in the last moment may make the next request wait for its back-off.
        wait_until(lambda: daemon.chat("hi", max_tokens=1).status_code == 200, timeout_s=60)
        wait_until(lambda: [row["sequences"] for row in daemon.ps()] == [0], timeout_s=10)
        assert len(process.children(recursive=True)) == 1
        assert process.memory_info().rss - before < 60 * 2**20
        assert process.num_fds() < 60
