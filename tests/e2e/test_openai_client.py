"""The official ``openai`` client against the real daemon, over TCP and over the Unix socket."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.testing.daemon import Daemon

pytestmark = pytest.mark.model
MODEL = "embedded/smollm2"


@pytest.fixture(scope="module", params=["tcp", "unix", "tcp, named backend", "unix, DMR prefix"])
def client(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[openai.OpenAI]:
    path = "/engines/llama.cpp/v1" if "named" in request.param else "/engines/v1"
    if "prefix" in request.param:
        path = f"/exp/vDD4.40{path}"
    if request.param.startswith("unix"):
        transport = httpx.HTTPTransport(uds=daemon.socket)
        http = httpx.Client(transport=transport)
        yield openai.OpenAI(base_url=f"http://localhost{path}", api_key="none", http_client=http)
        http.close()
    else:
        with openai.OpenAI(base_url=daemon.url + path, api_key="none") as made:
            yield made


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "user", "content": "What is the capital of France? Answer in one word."}
        ],
        temperature=0,
        max_tokens=20,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_joins_to_the_same_text_and_reports_usage(client: openai.OpenAI) -> None:
    def ask(**options: object) -> object:
        return client.chat.completions.create(  # type: ignore[call-overload]
            model=MODEL,
            messages=[{"role": "user", "content": "Count from one to ten."}],
            temperature=0,
            max_tokens=24,
            **options,
        )

    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content  # type: ignore[attr-defined]
    # How much of a prompt was cached depends on who asked before.
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens  # type: ignore[attr-defined]
    assert chunks[-1].usage.completion_tokens == 24
    assert sum(1 for c in chunks if c.choices and c.choices[0].finish_reason) == 1
    assert len(chunks) > 5


def test_a_completion_goes_on_with_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", temperature=0, max_tokens=6, logprobs=2
    )
    assert "Paris" in answer.choices[0].text
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert all(value <= 0 for value in logprobs.token_logprobs or [] if value is not None)


def test_embeddings_are_normalised_and_close_for_close_texts(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(
        model=MODEL,
        input=["A man is eating food.", "A man is eating a meal.", "Stock prices fell."],
    )
    one, two, three = (item.embedding for item in answer.data)
    assert math.isclose(sum(x * x for x in one), 1, abs_tol=1e-4)

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert dot(one, two) > dot(one, three)


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert MODEL in {model.id for model in client.models.list()} | {
        model.id.removesuffix(":latest") for model in client.models.list()
    }
    assert client.models.retrieve(MODEL).object == "model"


def test_a_missing_model_is_a_typed_error_that_says_what_to_do(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="runner pull ai/nothing") as caught:
        client.chat.completions.create(
            model="ai/nothing", messages=[{"role": "user", "content": "hi"}]
        )
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_a_bad_request_is_a_typed_error_that_names_the_field(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], temperature=9
        )
    assert caught.value.param == "temperature"
