"""The public contract: what it exports, its errors, the sequential adapter."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

import pytest

import runner.api
from runner.api import (
    ChatRequest,
    Delta,
    Event,
    Failed,
    Finished,
    ModelNotFound,
    ModelTooLarge,
    RequestError,
    RunnerError,
    SequentialEngine,
    Usage,
    error_from_wire,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.api import EngineRequest


def test_the_package_exports_all_that_its_modules_do() -> None:
    names: set[str] = set()
    for module in pkgutil.iter_modules(runner.api.__path__, "runner.api."):
        names |= set(importlib.import_module(module.name).__all__)
    assert set(runner.api.__all__) == names
    assert all(hasattr(runner.api, name) for name in names)


def error_classes() -> list[type[RunnerError]]:
    return [
        value
        for name in runner.api.__all__
        if isinstance(value := getattr(runner.api, name), type) and issubclass(value, RunnerError)
    ]


def test_every_error_has_a_code_of_its_own_and_is_drawn_in_the_tree() -> None:
    classes = error_classes()
    assert len({cls.code for cls in classes}) == len(classes)
    tree = importlib.import_module("runner.api.errors").__doc__
    for cls in classes[1:]:
        assert cls.__name__ in tree
    for cls in set(classes) - {RunnerError}:
        assert cls.code in tree


@pytest.mark.parametrize("cls", error_classes())
def test_an_error_survives_a_border(cls: type[RunnerError]) -> None:
    again = error_from_wire(cls.code, "what happened", param="x")
    assert type(again) is cls
    assert (again.message, again.param, str(again)) == ("what happened", "x", "what happened")


def test_an_unknown_code_becomes_a_plain_error() -> None:
    assert type(error_from_wire("from_the_future", "m")) is RunnerError


def test_only_refusals_that_time_can_mend_are_retryable() -> None:
    assert not ModelTooLarge("m").is_retryable
    assert not ModelNotFound("m").is_retryable
    assert error_from_wire("queue_full", "m").is_retryable


class Letters(SequentialEngine):
    """Answers with the letters of the last message; "!" fails, "?" ends without an event."""

    closed = 0

    def validate(self, request: EngineRequest) -> None:
        if not isinstance(request, ChatRequest):
            raise RequestError("chat only")

    def generate(self, request: EngineRequest) -> Iterator[Event | None]:
        assert isinstance(request, ChatRequest)
        text = request.messages[-1].content
        try:
            for letter in text:
                if letter == "!":
                    raise RequestError("no shouting")
                if letter == "?":
                    return
                yield None
                yield Delta(request_id=request.id, index=0, text=letter)
            yield Finished(request_id=request.id, usage=Usage(n_prompt=1, n_completion=len(text)))
        finally:
            self.closed += 1


def chat(request_id: str, text: str) -> ChatRequest:
    message = runner.api.Message(role="user", content=text)
    return ChatRequest(id=request_id, messages=(message,))


def run(engine: SequentialEngine) -> list[Event]:
    events: list[Event] = []
    while (step := engine.step()).has_work or step.events:
        events += step.events
    return events


def test_a_sequential_engine_answers_in_the_order_of_arrival() -> None:
    engine = Letters()
    engine.submit(chat("a", "hi"))
    engine.submit(chat("b", "yo"))
    assert engine.stats().queued == 2
    events = run(engine)
    texts = [(e.request_id, e.text) for e in events if isinstance(e, Delta)]
    assert texts == [("a", "h"), ("a", "i"), ("b", "y"), ("b", "o")]
    assert [e.request_id for e in events if isinstance(e, Finished)] == ["a", "b"]
    assert not engine.step().has_work


def test_a_sequential_engine_cancels_between_yields_and_frees_at_once() -> None:
    engine = Letters()
    engine.submit(chat("a", "hello"))
    engine.submit(chat("b", "x"))
    engine.submit(chat("c", "y"))
    engine.step()
    engine.cancel("a")
    engine.cancel("c")
    engine.cancel("never heard of")
    assert engine.closed == 1
    assert {e.request_id for e in run(engine)} == {"b"}


def test_an_error_in_one_request_is_its_own() -> None:
    engine = Letters()
    for name, text in [("a", "!"), ("b", "?"), ("c", "ok")]:
        engine.submit(chat(name, text))
    events = run(engine)
    failed = {e.request_id: e.code for e in events if isinstance(e, Failed)}
    assert failed == {"a": "invalid_request", "b": "internal_error"}
    assert isinstance(events[-1], Finished)
