"""Many clients at once, and clients that leave."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import httpx
import pytest

from runner.testing.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.testing.daemon import Daemon

pytestmark = pytest.mark.model
MODEL = "embedded/smollm2"


def essay(topic: str, **fields: object) -> dict[str, object]:
    content = f"Write a long essay about {topic}."
    message = {"role": "user", "content": content}
    return {"model": MODEL, "messages": [message], "ignore_eos": True, "stream": True, **fields}


def texts(response: httpx.Response) -> list[str]:
    found = []
    for line in response.iter_lines():
        if line.startswith("data: {"):
            choices = json.loads(line[6:])["choices"]
            found += [c["delta"].get("content") or "" for c in choices]
    return found


def test_eight_streams_progress_together(daemon: Daemon) -> None:
    peak = 0

    def ask(number: int) -> int:
        nonlocal peak
        body = essay(f"the number {number}", max_tokens=64)
        with httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json=body, timeout=60) as r:
            assert r.status_code == 200
            count = 0
            for _ in r.iter_lines():
                count += 1
                if number == 0:
                    peak = max(peak, daemon.ps()[0]["sequences"])
            return count

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(8)))
    assert peak == 8
    wait_until(lambda: daemon.ps()[0]["sequences"] == 0, timeout_s=5)


def test_clients_that_leave_free_their_sequences_at_once(daemon: Daemon) -> None:
    streams: list[Iterator[str]] = []
    with ExitStack() as stack:
        for number in range(8):
            body = essay(f"the letter {number}", max_tokens=2000)
            response = stack.enter_context(
                httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json=body, timeout=60)
            )
            # Kept: httpx closes the response of an iterator that is thrown away.
            streams.append(response.iter_lines())
            next(streams[-1])
        wait_until(lambda: daemon.ps()[0]["sequences"] == 8, timeout_s=20)
    wait_until(lambda: daemon.ps()[0]["sequences"] == 0, timeout_s=2)


def test_a_client_that_leaves_before_a_plain_answer_frees_its_sequence(daemon: Daemon) -> None:
    body = essay("patience", max_tokens=2000, stream=False)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{daemon.url}/v1/chat/completions", json=body, timeout=1)
    wait_until(lambda: daemon.ps()[0]["sequences"] == 0, timeout_s=2)


def test_a_long_prompt_does_not_stop_the_others(daemon: Daemon) -> None:
    body = essay("short steps", max_tokens=200)
    with httpx.stream("POST", f"{daemon.url}/v1/chat/completions", json=body, timeout=60) as steady:
        lines = steady.iter_lines()
        next(lines)
        with ThreadPoolExecutor(1) as pool:
            long = essay("word " * 3000, max_tokens=4, stream=False)
            future = pool.submit(
                httpx.post, f"{daemon.url}/v1/chat/completions", json=long, timeout=60
            )
            during = 0
            for _ in lines:
                if future.done():
                    break
                during += 1
            assert future.result().status_code == 200
    assert during > 10
