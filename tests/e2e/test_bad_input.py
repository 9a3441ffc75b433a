"""Bad input against the real daemon: the right status, the field named, nothing harmed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from runner.testing.daemon import Daemon

pytestmark = pytest.mark.model
USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": "hi"}, "messages"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_a_bad_field_is_named(daemon: Daemon, fields: dict[str, Any], param: str) -> None:
    body = {"model": "embedded/smollm2", "messages": [USER]} | fields
    for stream in (False, True):
        answer = httpx.post(f"{daemon.url}/v1/chat/completions", json=body | {"stream": stream})
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"].startswith(param), error
        assert error["type"] == "invalid_request_error"


def test_malformed_json_is_400(daemon: Daemon) -> None:
    answer = httpx.post(f"{daemon.url}/v1/chat/completions", content=b"{bad json")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(daemon: Daemon) -> None:
    answer = daemon.chat("word " * 9000)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    numbers = [int(number) for number in re.findall(r"\d+", error["message"])]
    assert numbers[0] > 9000
    assert numbers[1] >= 2048


def test_an_unknown_field_is_accepted_and_named(daemon: Daemon) -> None:
    answer = daemon.chat("hi", max_tokens=1, frobnicate=True)
    assert answer.status_code == 200
    assert answer.headers["x-runner-ignored"] == "frobnicate"


def test_an_unknown_backend_is_404_and_lists_the_known(daemon: Daemon) -> None:
    answer = daemon.chat("hi", prefix="/engines/nope/v1")
    assert answer.status_code == 404
    assert "llama.cpp" in answer.json()["error"]["message"]


def test_a_foreign_page_and_a_rebound_host_are_turned_away(daemon: Daemon) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        answer = httpx.get(f"{daemon.url}/engines/v1/models", headers=headers)
        assert answer.status_code == 403
    local = httpx.get(f"{daemon.url}/models", headers={"Origin": "http://localhost:3000"})
    assert local.headers["access-control-allow-origin"] == "http://localhost:3000"


def test_files_are_pulled_over_the_socket_only(daemon: Daemon) -> None:
    answer = httpx.post(f"{daemon.url}/models/create", json={"from": "file:///etc/passwd"})
    assert answer.status_code == 403


def test_every_answer_has_a_request_id(daemon: Daemon) -> None:
    for path in ("/", "/version", "/nothing/here", "/v1/models"):
        assert httpx.get(daemon.url + path).headers["x-request-id"]
