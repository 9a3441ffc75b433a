"""Bodies, parameters and shapes, without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.errors import RequestError, UnsupportedParameter
from runner.api.events import ChoiceFinished, Delta, Finished, TokenLogprob, TopLogprob, Usage
from runner.openai.body import decode_body
from runner.openai.chat import ChatBody, ChatCollector, ChatStream, chat_request
from runner.openai.completions import (
    CompletionBody,
    CompletionCollector,
    CompletionStream,
    completion_request,
)
from runner.openai.embeddings import EmbeddingBody, embedding_request
from runner.openai.generation import AnswerInfo
from runner.openai.parameters import CHAT, COMPLETION, EMBEDDING, ignored_header

INFO = AnswerInfo(id="x-1", created=1, model="m", system_fingerprint="f")
TOKENS = (
    TokenLogprob("Hé", "Hé".encode(), -0.5, (TopLogprob("Hé", "Hé".encode(), -0.5),)),
    TokenLogprob("�", b"\xff", -1.0, ()),
)
DONE = Finished(request_id="x-1", usage=Usage(n_prompt=1, n_completion=2))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        *ChatBody.__struct_fields__,
        *CompletionBody.__struct_fields__,
        *EmbeddingBody.__struct_fields__,
        *CHAT.unsupported,
        "unknown",
    ]
)


@given(st.binary() | st.dictionaries(fields, json_values).map(msgspec.json.encode))
def test_any_body_is_decoded_or_is_a_request_error(data: bytes) -> None:
    for kind, rules, translate in (
        (ChatBody, CHAT, chat_request),
        (CompletionBody, COMPLETION, completion_request),
        (EmbeddingBody, EMBEDDING, embedding_request),
    ):
        make: Any = translate
        try:
            body, unknown = decode_body(data, kind, rules)
            make(body, "id")
        except RequestError as error:
            assert error.message
        else:
            assert ignored_header(unknown).isprintable()


@given(st.lists(st.text()))
def test_the_ignored_header_is_always_a_safe_header_value(names: list[str]) -> None:
    value = ignored_header(names)
    assert value.isascii()
    assert value.isprintable()
    assert len(value) < 3000


def test_a_false_switch_passes_and_a_zero_in_its_place_does_not() -> None:
    decode_body(b'{"prompt":"a","echo":false}', CompletionBody, COMPLETION)
    with pytest.raises(UnsupportedParameter, match="echo"):
        decode_body(b'{"prompt":"a","echo":0}', CompletionBody, COMPLETION)


def test_chat_logprobs_have_openais_shape() -> None:
    body = ChatBody(messages=[], logprobs=True, top_logprobs=1)
    collector = ChatCollector(INFO, body)
    delta = Delta(request_id="x-1", index=0, text="Hé�", logprobs=TOKENS)
    collector.add([delta, DONE])
    logprobs = msgspec.to_builtins(collector.answer())["choices"][0]["logprobs"]
    assert logprobs == {
        "content": [
            {
                "token": "Hé",
                "logprob": -0.5,
                "bytes": [72, 195, 169],
                "top_logprobs": [{"token": "Hé", "logprob": -0.5, "bytes": [72, 195, 169]}],
            },
            {"token": "�", "logprob": -1.0, "bytes": [255], "top_logprobs": []},
        ],
        "refusal": None,
    }
    streamed = ChatStream(INFO, body).encode([delta])
    chunk = msgspec.json.decode(streamed.removeprefix(b"data: "))
    assert chunk["choices"][0]["logprobs"] == logprobs


def test_completion_logprobs_count_offsets_per_choice_also_in_a_stream() -> None:
    body = CompletionBody(prompt="a", logprobs=1)
    deltas = [Delta(request_id="x-1", index=0, text="", logprobs=(t,)) for t in TOKENS]
    collector = CompletionCollector(INFO, body, n_choices=1)
    collector.add([*deltas, ChoiceFinished(request_id="x-1", index=0, reason="length"), DONE])
    choice = msgspec.to_builtins(collector.answer())["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "tokens": ["Hé", "�"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"Hé": -0.5}, {}],
        "text_offset": [0, 2],
    }
    stream = CompletionStream(INFO, body)
    chunks = [msgspec.json.decode(stream.encode([d]).removeprefix(b"data: ")) for d in deltas]
    assert [c["choices"][0]["logprobs"]["text_offset"] for c in chunks] == [[0], [2]]


@given(st.lists(st.tuples(st.integers(0, 2), st.text()), max_size=20))
def test_streamed_and_collected_text_are_the_same(pieces: list[tuple[int, str]]) -> None:
    body = ChatBody(messages=[], n=3)
    events = [Delta(request_id="x-1", index=i, text=text) for i, text in pieces]
    collector = ChatCollector(INFO, body)
    collector.add([*events, DONE])
    collected = [choice.message.content for choice in collector.answer().choices]
    streamed = ["", "", ""]
    for line in ChatStream(INFO, body).encode(events).split(b"\n\n"):
        if line:
            (choice,) = msgspec.json.decode(line.removeprefix(b"data: "))["choices"]
            streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == collected


def test_seeds_are_what_every_engine_can_take() -> None:
    def seed(value: int) -> int | None:
        fields = {"messages": [{"role": "user", "content": "a"}], "seed": value}
        body = msgspec.convert(fields, ChatBody)
        return chat_request(body, "id").generation.sampling.seed

    assert seed(-1) is None
    assert seed(7) == 7
    for value in (-(2**63), 2**63 - 1, 2**32 - 1):
        drawn = seed(value)
        assert drawn is not None
        assert 0 <= drawn < 2**32 - 1
