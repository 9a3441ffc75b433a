from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.client import Client, error_in, lines, model_path, sse
from runner.cli.errors import DaemonLost, DaemonUnreachable
from runner.config import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.config import Settings


def response(pieces: list[bytes]) -> httpx.Response:
    return httpx.Response(200, content=iter(pieces))


@given(st.lists(st.binary(max_size=6)))
def test_lines_do_not_depend_on_how_the_bytes_arrive(pieces: list[bytes]) -> None:
    assert list(lines(response(pieces))) == list(lines(response([b"".join(pieces)])))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))))
def test_any_text_without_line_ends_comes_back_as_its_line(texts: list[str]) -> None:
    data = "".join(f"{text}\n" for text in texts).encode()
    assert [line.decode() for line in lines(response([data]))] == texts


def parse(text: str) -> list[tuple[str, bytes]]:
    def source() -> Iterator[bytes]:
        yield from text.encode().split(b"\n")

    return list(sse(source()))


def test_sse_comments_and_data() -> None:
    text = ": loading\n\nevent: x\ndata: a\ndata:b\n\ndata: c"
    assert parse(text) == [("comment", b"loading"), ("data", b"a\nb"), ("data", b"c")]


@pytest.mark.parametrize(
    "payload", [[], {}, {"error": None}, {"choices": []}, "error", {"error": []}]
)
def test_payloads_that_are_no_errors(payload: object) -> None:
    assert error_in(payload) is None


def test_error_keeps_code_message_and_param() -> None:
    wire = {"error": {"code": "model_not_found", "message": "no", "param": "model"}}
    error = error_in(json.loads(json.dumps(wire)))
    assert error is not None
    assert (error.code, error.message, error.param) == ("model_not_found", "no", "model")


def test_model_paths_are_quoted() -> None:
    assert model_path("ai/x:y@sha256:0") == "/models/ai/x:y@sha256:0"
    assert model_path("a b?c#d") == "/models/a%20b%3Fc%23d"


def test_connection_that_breaks_is_told_as_such(settings: Settings, fake: Any) -> None:
    def cut(write: Any) -> None:
        write(b"data: x\n")

    fake.routes["GET", "/cut"] = (200, "text/plain\r\ncontent-length: 1000", cut)
    with (
        Client(Address(socket=settings.socket_path)) as client,
        pytest.raises(DaemonLost, match=r"the connection to the daemon .* broke"),
        client.stream("GET", "/cut") as answer,
    ):
        list(lines(answer))


def test_nothing_at_the_address(settings: Settings) -> None:
    with Client(Address(socket=settings.socket_path)) as client:
        assert client.server_info() is None


def test_socket_that_cannot_be_used_is_not_taken_for_a_missing_daemon(settings: Settings) -> None:
    path = settings.home / ("x" * 200)
    with (
        Client(Address(socket=path)) as client,
        pytest.raises(DaemonUnreachable, match="cannot connect to"),
    ):
        client.server_info()


def test_api_key_goes_to_urls_only(settings: Settings, fake: Any) -> None:
    with Client(Address(socket=settings.socket_path), api_key="secret") as client:
        client.server_info()
    assert "authorization" not in fake.seen[-1]["headers"]
