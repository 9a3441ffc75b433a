"""The OpenAI routes: answers, streams, bad input."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from runner.api.errors import QueueFull, RequestError, WorkerDied
from runner.api.events import Started
from runner.api.requests import ChatRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from runner.api.events import Event
    from runner.api.requests import EngineRequest

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = "/engines/v1/chat/completions"


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "ai/tiny", "messages": MESSAGES, **fields}


def data_of(text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith(("data: ", ":")) for line in lines)
    payloads = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [payload if payload == "[DONE]" else json.loads(payload) for payload in payloads]


@pytest.mark.parametrize(
    "prefix", ["/v1", "/engines/v1", "/engines/parrot/v1", "/engines/polly/v1"]
)
async def test_a_chat_is_answered_under_every_path(harness: Any, prefix: str) -> None:
    async with harness.client() as client:
        response = await client.post(f"{prefix}/chat/completions", json=chat_body(n=2))
    assert response.status_code == 200
    answer = response.json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "ai/tiny"
    assert answer["system_fingerprint"] == "parrot-1.2"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][1]["message"] == {
        "role": "assistant",
        "content": "Hello wörld",
        "refusal": None,
    }
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 4,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    assert answer["timings"]["prompt_n"] == 3
    assert harness.scheduler.n_held == 0


async def test_completions_number_choices_prompt_by_prompt(harness: Any) -> None:
    body = {"model": "ai/tiny", "prompt": ["a", "b"], "n": 2, "logprobs": 1}
    async with harness.client() as client:
        answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["choices"][3]["text"] == "Hello wörld"


async def test_embeddings_come_as_numbers_or_as_base64(harness: Any) -> None:
    body = {"model": "ai/tiny", "input": ["a", "b"], "user": "someone"}
    async with harness.client() as client:
        plain = (await client.post("/v1/embeddings", json=body)).json()
        packed = (
            await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
        ).json()
    assert plain["object"] == "list"
    assert [row["embedding"] for row in plain["data"]] == [[1.0, 1.0], [1.0, 1.0]]
    assert plain["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert base64.b64decode(packed["data"][1]["embedding"]) == b"\x00\x00\x80\x3f" * 2


async def test_a_stream_has_roles_text_reasons_usage_and_done(harness: Any) -> None:
    body = chat_body(stream=True, stream_options={"include_usage": True})
    async with harness.client() as client:
        response = await client.post(CHAT, json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *chunks, usage, done = data_of(response.text)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 7
    assert all(chunk["usage"] is None for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [c["choices"][0]["delta"].get("content") for c in chunks[1:3]] == ["Hello", " wörld"]
    assert chunks[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_without_include_usage_no_chunk_mentions_it(harness: Any) -> None:
    async with harness.client() as client:
        response = await client.post(
            "/v1/completions", json={"model": "ai/tiny", "prompt": "a", "stream": True}
        )
    chunks = data_of(response.text)[:-1]
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello wörld"


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_errors_before_the_first_event_keep_their_status(
    harness: Any, is_streaming: bool
) -> None:
    harness.scheduler.error = QueueFull("too many requests wait")
    async with harness.client() as client:
        response = await client.post(CHAT, json=chat_body(stream=is_streaming))
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_full"
    assert int(response.headers["retry-after"]) > 0
    assert "x-should-retry" not in response.headers


async def test_an_error_in_a_stream_is_a_data_line_without_done(harness: Any) -> None:
    async def dies(request: EngineRequest) -> AsyncIterator[list[Event]]:
        yield [Started(request_id=request.id, n_prompt=1)]
        raise WorkerDied("the worker was killed by SIGKILL")

    harness.scheduler.engine = dies
    async with harness.client() as client:
        response = await client.post(CHAT, json=chat_body(stream=True))
    assert response.status_code == 200
    *_, last = data_of(response.text)
    assert last["error"]["code"] == "worker_died"
    assert last["error"]["request_id"] == response.headers["x-request-id"]
    assert "event:" not in response.text
    assert "[DONE]" not in response.text


async def test_an_unexpected_error_shows_no_internals(
    harness: Any, caplog: pytest.LogCaptureFixture
) -> None:
    harness.scheduler.error = ZeroDivisionError("secret")
    async with harness.client() as client:
        response = await client.post(CHAT, json=chat_body())
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" in caplog.text


async def test_an_error_in_a_group_is_shown_as_itself(harness: Any) -> None:
    inner = RequestError("no such token", param="prompt")
    harness.scheduler.error = ExceptionGroup("tasks", [inner])
    async with harness.client() as client:
        response = await client.post(CHAT, json=chat_body())
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


async def test_while_a_model_loads_the_stream_commits_and_tells(harness: Any) -> None:
    harness.set(stream_commit_s=0.01)
    harness.scheduler.ready = anyio.Event()
    received: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not requested:
            requested.append(True)
            return {"type": "http.request", "body": json.dumps(chat_body(stream=True)).encode()}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        received.append(message)
        if message.get("body", b"").startswith(b":"):
            harness.scheduler.ready.set()

    requested: list[bool] = []
    await harness.app(http_scope(CHAT), receive, send)
    start, note, *rest = received
    assert start["status"] == 200
    assert note["body"] == b": loading 40 %\n\n"
    assert rest[-2]["body"].endswith(b"data: [DONE]\n\n")
    assert rest[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_what_one_step_yields_is_one_send(harness: Any) -> None:
    bodies: list[bytes] = []

    async def receive() -> dict[str, Any]:
        if not requested:
            requested.append(True)
            body = json.dumps(chat_body(stream=True, n=3)).encode()
            return {"type": "http.request", "body": body}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            bodies.append(message["body"])

    requested: list[bool] = []
    await harness.app(http_scope(CHAT), receive, send)
    assert [body.count(b"data: ") for body in bodies] == [3, 3, 3, 4, 0]


def http_scope(path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "server": ("/run/runner.sock", None),
        "client": None,
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "asgi": {"version": "3.0"},
    }


async def test_preload_only_loads_and_answers_nothing(harness: Any) -> None:
    headers = {"X-Preload-Only": "true"}
    body = {"model": "ai/tiny", "keep_alive": "1h"}
    async with harness.client() as client:
        response = await client.post(CHAT, json=body, headers=headers)
    assert (response.status_code, response.content) == (200, b"")
    assert harness.scheduler.requests == []
    assert harness.scheduler.leases[0]["keep_alive_s"] == 3600.0


async def test_keep_alive_and_client_reach_the_lease(harness: Any) -> None:
    async with harness.client() as client:
        await client.post(CHAT, json=chat_body(keep_alive=-1, user="alice"))
        await client.post(CHAT, json=chat_body())
        bad = await client.post(CHAT, json=chat_body(keep_alive="soon"))
    first, second = harness.scheduler.leases
    assert (first["keep_alive_s"], first["client"]) == (-1.0, "user:alice")
    assert (second["keep_alive_s"], second["client"]) == (None, "address:127.0.0.1")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "keep_alive")


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        {
            "messages": [
                *MESSAGES,
                {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            ]
        },
        "messages[1].content[0]",
    ),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "messages[0].tool_calls",
    ),
    ({"model": ""}, "model"),
    ({"model": 3}, "model"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.5}, "top_p"),
    ({"min_p": -1}, "min_p"),
    ({"typical_p": 2}, "typical_p"),
    ({"repeat_penalty": 0}, "repeat_penalty"),
    ({"top_k": -2}, "top_k"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": 2}, "logprobs"),
    ({"logit_bias": {"1": 101}}, "logit_bias[...]"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"seed": 1.5}, "seed"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"functions": [{}]}, "functions"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"grammar": "root ::= x"}, "grammar"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_CHATS, ids=lambda value: str(value)[:40])
async def test_a_bad_field_is_a_400_that_names_it(
    harness: Any, fields: dict[str, Any], param: str
) -> None:
    async with harness.client() as client:
        response = await client.post(CHAT, json=chat_body(**fields))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param.removesuffix("[...]") in error["message"]
    assert harness.scheduler.leases == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{bad json",
        b"[]",
        b'"x"',
        b"null",
        b'{"model": "\xff"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"x":' + b"[" * 100_000,
    ],
)
async def test_what_is_not_a_json_object_is_a_400(harness: Any, body: bytes) -> None:
    async with harness.client() as client:
        response = await client.post(CHAT, content=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [1, "a"]}, "prompt"),
        ("completions", {"prompt": [[1], []]}, "prompt[1]"),
        ("completions", {"prompt": [-1]}, "prompt[0]"),
        ("completions", {"prompt": "a", "echo": True}, "echo"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("completions", {"prompt": "a", "best_of": 2}, "best_of"),
        ("completions", {"prompt": "a", "logprobs": 21}, "logprobs"),
        ("completions", {"prompt": ["a"] * 100, "n": 100}, "n"),
        ("embeddings", {}, "input"),
        ("embeddings", {"input": ""}, "input"),
        ("embeddings", {"input": ["a", ""]}, "input[1]"),
        ("embeddings", {"input": {}}, "input"),
        ("embeddings", {"input": "a", "dimensions": 3}, "dimensions"),
        ("embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_the_other_bodies_are_checked_too(
    harness: Any, path: str, body: dict[str, Any], param: str
) -> None:
    async with harness.client() as client:
        response = await client.post(f"/v1/{path}", json={"model": "ai/tiny", **body})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_values_that_ask_for_nothing_pass(harness: Any) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "none",
        "functions": None,
        "response_format": {"type": "text"},
        "stop": None,
        "user": "me",
        "metadata": {"a": "b"},
        "temperature": None,
    }
    async with harness.client() as client:
        response = await client.post(CHAT, json=chat_body(**neutral))
        echo = {"model": "ai/tiny", "prompt": [1, 2], "echo": False, "best_of": 1, "suffix": None}
        completion = await client.post("/v1/completions", json=echo)
    assert (response.status_code, completion.status_code) == (200, 200)
    assert "x-runner-ignored" not in response.headers
    assert harness.scheduler.requests[1].prompts == ((1, 2),)


@pytest.mark.parametrize("is_streaming", [False, True])
async def test_unknown_parameters_are_named_in_a_header(harness: Any, is_streaming: bool) -> None:
    body = chat_body(mirostat=2, stream=is_streaming, **{"a\r\nb: c": 1})
    async with harness.client() as client:
        response = await client.post(CHAT, json=body)
    assert response.status_code == 200
    assert response.headers["x-runner-ignored"] == "mirostat, ?"


async def test_sampling_and_roles_reach_the_engine(harness: Any) -> None:
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "user", "content": "x", "name": "bob"},
        {"role": "assistant", "content": None},
    ]
    fields = {
        "temperature": 0,
        "top_k": -1,
        "seed": 7,
        "stop": "END",
        "max_completion_tokens": 9,
        "logit_bias": {"5": -100},
        "logprobs": True,
        "ignore_eos": True,
    }
    async with harness.client() as client:
        await client.post(CHAT, json={"model": "ai/tiny", "messages": messages, **fields})
    (request,) = harness.scheduler.requests
    assert isinstance(request, ChatRequest)
    assert [(m.role, m.content, m.name) for m in request.messages] == [
        ("system", "a\nb", None),
        ("user", "x", "bob"),
        ("assistant", "", None),
    ]
    generation = request.generation
    assert (generation.max_tokens, generation.stop, generation.logprobs) == (9, ("END",), 0)
    assert generation.ignore_eos
    assert generation.sampling.temperature == 0.0
    assert (generation.sampling.top_k, generation.sampling.seed) == (0, 7)
    assert generation.sampling.logit_bias == {5: -100.0}


async def test_a_missing_model_is_a_404_with_the_pull_command(harness: Any) -> None:
    async with harness.client() as client:
        response = await client.post(CHAT, json=chat_body(model="ai/absent"))
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "model_not_found"
    assert "runner pull ai/absent" in error["message"]
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "chat/completions"),
        ("POST", "embeddings"),
        ("GET", "models"),
        ("GET", "models/ai/tiny"),
    ],
)
async def test_an_unknown_backend_is_a_404(harness: Any, method: str, path: str) -> None:
    async with harness.client() as client:
        response = await client.request(method, f"/engines/owl/v1/{path}", content=b"{}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "backend_not_found"


@pytest.mark.parametrize("prefix", ["/v1", "/engines/v1", "/engines/parrot/v1"])
async def test_models_are_listed_and_found(harness: Any, prefix: str) -> None:
    async with harness.client() as client:
        listing = (await client.get(f"{prefix}/models")).json()
        one = (await client.get(f"{prefix}/models/ai/tiny")).json()
        digest = (await client.get(f"{prefix}/models/{harness.store.models[0].id}")).json()
        missing = await client.get(f"{prefix}/models/ai/absent")
    assert listing == {"object": "list", "data": [one]}
    assert one == digest
    assert one == {
        "id": "docker.io/ai/tiny:latest",
        "object": "model",
        "created": 1700000000,
        "owned_by": "docker",
        "dmr": {"context_window": 2048, "architecture": "llama", "size": "10MiB"},
    }
    assert missing.status_code == 404
    harness.store.models = ()
    async with harness.client() as client:
        assert (await client.get(f"{prefix}/models")).json()["data"] == []
