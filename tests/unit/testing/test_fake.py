from __future__ import annotations

import importlib.metadata
import math
import struct
from typing import TYPE_CHECKING

import pytest

from runner.api import (
    Budget,
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    ContextLengthExceeded,
    Cpu,
    Delta,
    EmbeddingRequest,
    EmbeddingVector,
    EngineStats,
    Finished,
    Generation,
    LoadConfig,
    Machine,
    MachineMemory,
    Message,
    Placement,
)
from runner.plugins import Plugins
from runner.testing.distribution import install_fake
from runner.testing.fake import FakeOptions, fake_model
from runner.testing.script import FakeEngine

if TYPE_CHECKING:
    from pathlib import Path

    from runner.api import EngineRequest, Event
    from runner.config import Settings

MACHINE = Machine(
    os="linux",
    cpu=Cpu(model="test", arch="x86_64", n_usable=2),
    memory=MachineMemory(total_bytes=2**34, available_bytes=2**33),
)


def make_engine(options: FakeOptions | None = None, *, context_size: int = 1000) -> FakeEngine:
    placement = Placement(context_size=context_size, kv_cells=context_size, max_sequences=2)
    return FakeEngine(options or FakeOptions(), placement)


def run(engine: FakeEngine, *requests: EngineRequest) -> list[Event]:
    for request in requests:
        engine.submit(request)
    events: list[Event] = []
    has_work = True
    while has_work:
        step = engine.step()
        events += step.events
        has_work = step.has_work
    return events


def say(prompt: str, **generation: object) -> CompletionRequest:
    return CompletionRequest(
        id="r",
        prompts=(prompt,),
        generation=Generation(**generation),  # type: ignore[arg-type]  # a test's shorthand
    )


def text_of(events: list[Event], index: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.index == index)


def reasons(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, ChoiceFinished)]


def test_the_fake_says_its_tokens_and_counts_them() -> None:
    events = run(make_engine(), say("two words"))
    assert text_of(events) == "Hello, world!"
    assert reasons(events) == ["stop"]
    assert isinstance(events[-1], Finished)
    assert (events[-1].usage.n_prompt, events[-1].usage.n_completion) == (2, 4)


def test_max_tokens_and_the_context_end_an_answer_by_length() -> None:
    events = run(make_engine(), say("say 9 words", max_tokens=2))
    assert (text_of(events), reasons(events)) == ("word0 word1 ", ["length"])
    events = run(make_engine(context_size=5), say("say 9 words"))
    assert (text_of(events), reasons(events)) == ("word0 word1 ", ["length"])


def test_a_stop_string_is_never_said() -> None:
    events = run(make_engine(), say("x", stop=("lo, w", "never")))
    assert (text_of(events), reasons(events)) == ("Hel", ["stop"])


def test_every_prompt_has_n_choices() -> None:
    options = FakeOptions(echo=True)
    request = CompletionRequest(id="r", prompts=("one", "two b"), generation=Generation(n=2))
    events = run(make_engine(options), request)
    assert [text_of(events, index) for index in range(4)] == ["one", "one", "two b", "two b"]
    assert isinstance(events[-1], Finished)
    assert (events[-1].usage.n_prompt, events[-1].usage.n_completion) == (3, 6)


def test_logprobs_come_with_each_token() -> None:
    (entry,) = [
        entry
        for event in run(make_engine(), say("say 1 words", logprobs=2))
        if isinstance(event, Delta)
        for entry in event.logprobs
    ]
    assert entry.token == "word0 "
    assert len(entry.top) == 2


def test_embeddings_are_normalised_and_depend_on_the_text() -> None:
    events = run(make_engine(), EmbeddingRequest(id="e", inputs=("a", "b", "a")))
    vectors = [
        struct.unpack("<8f", event.vector) for event in events if isinstance(event, EmbeddingVector)
    ]
    assert vectors[0] == vectors[2] != vectors[1]
    assert math.isclose(sum(x * x for x in vectors[0]), 1.0, rel_tol=1e-6)


def test_more_requests_than_sequences_wait_in_line() -> None:
    engine = make_engine()
    requests = [
        ChatRequest(id=str(i), messages=(Message(role="user", content="say 5 words"),))
        for i in range(5)
    ]
    for request in requests:
        engine.submit(request)
    engine.step()
    assert (engine.stats().active, engine.stats().queued) == (2, 3)
    engine.cancel("0")
    engine.cancel("4")
    engine.cancel("unknown")
    events = run(engine)
    assert {e.request_id for e in events if isinstance(e, Finished)} == {"1", "2", "3"}
    assert engine.stats() == EngineStats(kv_cells=1000, n_prompt=12, n_completion=16)


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with pytest.raises(ContextLengthExceeded, match="3 tokens and the context holds 3"):
        make_engine(context_size=3).submit(say("one two three"))


def test_an_installed_fake_is_a_real_backend(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    backend = Plugins.load(settings, only_backend="fake").backend("fake")
    assert (backend.distribution, backend.version) == ("fake", "1.0")
    support = backend.hardware_support(machine=MACHINE, probe=backend.probe_engine())
    assert support.is_supported
    estimate = backend.estimate_memory(
        model=fake_model(file_bytes=1000),
        config=LoadConfig(options=FakeOptions(memory_bytes=500), max_sequences=3),
        machine=MACHINE,
        budget=Budget(devices={"cpu": 2**30}),
    )
    assert estimate.by_device() == {"cpu": 1500}
    assert estimate.placement.max_sequences == 3


def test_the_fake_is_no_entry_point_of_runner_itself() -> None:
    entries = importlib.metadata.entry_points(group="runner.backends")
    assert "fake" not in {entry.name for entry in entries}
