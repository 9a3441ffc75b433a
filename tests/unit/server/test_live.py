"""Over real sockets: listeners, disconnects, draining."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import msgspec
import pytest

from runner.api.errors import ConflictError, RequestError
from runner.api.events import Delta, Started
from runner.server.listeners import check_exposure, open_tcp, open_unix
from runner.testing.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from runner.api.events import Event
    from runner.api.requests import EngineRequest
    from runner.config import Settings

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BODY = {"model": "ai/tiny", "messages": [{"role": "user", "content": "Hi"}]}


async def endless_engine(request: EngineRequest) -> AsyncIterator[list[Event]]:
    yield [Started(request_id=request.id, n_prompt=1)]
    while True:
        yield [Delta(request_id=request.id, index=0, text="x")]
        await anyio.sleep(0.01)


async def test_both_listeners_answer_and_only_tcp_is_guarded(harness: Any) -> None:
    harness.set(api_key="s3cret")
    async with harness.listen() as (over_tcp, over_socket):
        assert (await over_tcp.get("/v1/models")).status_code == 401
        keyed = await over_tcp.get("/v1/models", headers={"x-api-key": "s3cret"})
        assert keyed.status_code == 200
        assert (await over_socket.get("/v1/models")).status_code == 200
        six = str(over_tcp.base_url).replace("127.0.0.1", "[::1]")
        if socket.has_ipv6:
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.get(f"{six}/v1/models", headers={"x-api-key": "s3cret"})
                assert answer.status_code == 200
        mode = harness.settings.socket_path.stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


@pytest.mark.parametrize("over", [0, 1], ids=["tcp", "socket"])
async def test_a_client_that_leaves_a_stream_cancels_it(harness: Any, over: int) -> None:
    harness.scheduler.engine = endless_engine
    async with harness.listen() as clients:
        async with clients[over].stream("POST", CHAT, json={**BODY, "stream": True}) as response:
            async for line in response.aiter_lines():
                if "x" in line:
                    break
        await wait_until_async(lambda: harness.scheduler.n_held == 0, 2, "the lease to end")
        assert harness.scheduler.n_cancelled == 1


@pytest.mark.parametrize("over", [0, 1], ids=["tcp", "socket"])
async def test_a_client_that_leaves_before_the_answer_cancels_it(harness: Any, over: int) -> None:
    harness.scheduler.engine = endless_engine
    async with harness.listen() as clients:
        with anyio.move_on_after(0.1):
            await clients[over].post(CHAT, json=BODY)
        await wait_until_async(lambda: harness.scheduler.n_held == 0, 2, "the lease to end")
        assert harness.scheduler.n_cancelled == 1


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_a_client_that_leaves_during_the_load_gives_up_its_lease(
    harness: Any, is_streaming: bool
) -> None:
    harness.scheduler.ready = anyio.Event()
    async with harness.listen() as (client, _):
        with anyio.move_on_after(0.1):
            await client.post(CHAT, json={**BODY, "stream": is_streaming})
        assert len(harness.scheduler.leases) == 1
        await wait_until_async(lambda: harness.scheduler.n_held == 0, 2, "the lease to end")


async def test_a_body_over_the_limit_is_refused_over_the_wire(harness: Any) -> None:
    harness.set(body_limit_bytes=1000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 100

    async with harness.listen() as (client, _):
        assert (await client.post(CHAT, content=b" " * 2000)).status_code == 413
        assert (await client.post(CHAT, content=chunks())).status_code == 413
        assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_a_client_that_leaves_during_its_upload_is_no_error(
    harness: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "runner.access")
    async with harness.listen() as (client, _):
        port = client.base_url.port
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
            await stream.send(head.encode())
        await wait_until_async(lambda: " 499 " in caplog.text, 2, "the access log's line")
    assert "internal error" not in caplog.text


async def test_stopping_lets_a_running_request_finish(harness: Any) -> None:
    harness.scheduler.ready = anyio.Event()
    statuses: list[int] = []
    async with anyio.create_task_group() as tasks, harness.listen() as (client, _):
        url = str(client.base_url)

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as own:
                statuses.append((await own.post(CHAT, json=BODY)).status_code)

        async def release() -> None:
            await wait_until_async(lambda: refuses(url), 5, "the listener to close")
            harness.scheduler.ready.set()

        tasks.start_soon(ask)
        await wait_until_async(lambda: harness.scheduler.n_held == 1, 2)
        tasks.start_soon(release)
    assert statuses == [200]


def refuses(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", httpx.URL(url).port or 0)) != 0


async def test_a_request_that_outlasts_the_drain_is_told_why(harness: Any) -> None:
    harness.scheduler.ready = anyio.Event()
    harness.scheduler.drain_s = 0.05
    answers: list[httpx.Response] = []
    async with anyio.create_task_group() as tasks, harness.listen() as (client, _):
        url = str(client.base_url)

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as own:
                answers.append(await own.post(CHAT, json=BODY))

        tasks.start_soon(ask)
        await wait_until_async(lambda: harness.scheduler.n_held == 1, 2)
    (answer,) = answers
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")


def test_tcp_listeners_have_nagle_off() -> None:
    listeners = open_tcp("127.0.0.1", 0)
    assert [listener.proto for listener in listeners] == [socket.IPPROTO_TCP] * len(listeners)
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    for listener in listeners:
        listener.close()


def test_a_taken_port_leaves_the_socket_only(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert open_tcp("127.0.0.1", other.getsockname()[1]) == []
    assert "serving the Unix socket only" in caplog.text


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"192\.0\.2\.1"):
        open_tcp("192.0.2.1", 0)


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "run" / "r.sock"
    first = open_unix(path)
    first.listen()
    with pytest.raises(ConflictError, match="another daemon"):
        open_unix(path)
    first.close()
    assert path.exists()
    second = open_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    second.close()


def test_a_file_in_the_sockets_place_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.sock"
    path.write_text("mine")
    with pytest.raises(ConflictError, match="no socket"):
        open_unix(path)
    assert path.read_text() == "mine"


def test_beyond_loopback_needs_a_key_or_plain_words(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def with_(**changes: Any) -> Settings:
        return msgspec.structs.replace(settings, **changes)

    check_exposure(settings)
    check_exposure(with_(host="0.0.0.0", tcp=False))
    check_exposure(with_(host="0.0.0.0", api_key="k"))
    with pytest.raises(RequestError, match="without an API key"):
        check_exposure(with_(host="0.0.0.0"))
    check_exposure(with_(host="0.0.0.0", allow_unauthenticated=True))
    assert "WITHOUT AN API KEY" in caplog.text
