from __future__ import annotations

import itertools
import struct
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api import (
    ChatRequest,
    ChoiceFinished,
    Delta,
    EmbeddingVector,
    EngineStats,
    Failed,
    Finished,
    Message,
    Placement,
    Started,
    TokenLogprob,
    Usage,
)
from runner.testing.fake import fake_model
from runner.worker.codec import (
    MAX_FRAME_BYTES,
    FrameError,
    child_frames,
    daemon_frames,
    encode_frame,
)
from runner.worker.frames import (
    Bye,
    Cancel,
    Events,
    Hello,
    Load,
    LoadFailed,
    Log,
    Progress,
    Ready,
    Stop,
    Submit,
)
from runner.worker.spec import WorkerSpec

text = st.text(max_size=20)
counts = st.integers(0, 2**40)
logprobs = st.builds(
    TokenLogprob, text, st.binary(max_size=8), st.floats(max_value=0, allow_nan=False)
)
events = st.one_of(
    st.builds(Started, request_id=text, n_prompt=counts),
    st.builds(
        Delta,
        request_id=text,
        index=counts,
        text=text,
        logprobs=st.lists(logprobs, max_size=2).map(tuple),
    ),
    st.builds(ChoiceFinished, request_id=text, index=counts, reason=st.just("stop")),
    st.builds(EmbeddingVector, request_id=text, index=counts, vector=st.binary(max_size=64)),
    st.builds(Finished, request_id=text, usage=st.builds(Usage, n_prompt=counts)),
    st.builds(Failed, request_id=text, code=text, message=text, param=st.none() | text),
)
stats = st.builds(EngineStats, active=counts, n_prompt=counts)
child = st.one_of(
    st.builds(Hello, protocol=counts, version=text, pid=counts),
    st.builds(Progress, fraction=st.floats(0, 1), note=text),
    st.builds(Log, message=text),
    st.builds(Ready, stats=stats),
    st.builds(LoadFailed, code=text, message=text, param=st.none() | text),
    st.builds(Events, events=st.lists(events, max_size=3), stats=stats),
    st.just(Bye()),
)


def spec() -> WorkerSpec:
    placement = Placement(context_size=4096, kv_cells=8192, max_sequences=2)
    options = {"tokens": ["a", "b"], "delay_s": 0.5, "nested": {"x": None}}
    return WorkerSpec(backend="fake", model=fake_model(), options=options, placement=placement)


daemon = st.one_of(
    st.just(Load(spec=spec())),
    st.builds(
        Submit,
        request=st.builds(
            ChatRequest,
            id=text,
            messages=st.lists(st.builds(Message, role=text, content=text), max_size=2).map(tuple),
        ),
    ),
    st.builds(Cancel, request_id=text),
    st.just(Stop()),
)


def feed_in_pieces(decoder: Any, data: bytes, cuts: list[int]) -> list[Any]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [
        frame for start, end in itertools.pairwise(edges) for frame in decoder.feed(data[start:end])
    ]


@given(st.lists(child, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_child_frames_survive_any_split(frames: list[Any], cuts: list[int]) -> None:
    data = b"".join(map(encode_frame, frames))
    assert feed_in_pieces(child_frames(), data, cuts) == frames


@given(st.lists(daemon, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_daemon_frames_survive_any_split(frames: list[Any], cuts: list[int]) -> None:
    data = b"".join(map(encode_frame, frames))
    assert feed_in_pieces(daemon_frames(), data, cuts) == frames


@given(st.lists(st.binary(max_size=64), max_size=4))
def test_garbage_raises_nothing_but_frame_error(pieces: list[bytes]) -> None:
    decoder = child_frames()
    try:
        for piece in pieces:
            decoder.feed(piece)
    except FrameError:
        pass


@given(st.binary(max_size=200))
def test_a_garbage_payload_of_honest_length_raises_frame_error(payload: bytes) -> None:
    for decoder in (child_frames(), daemon_frames()):
        try:
            decoder.feed(struct.pack("<I", len(payload)) + payload)
        except FrameError:
            continue


@given(child, st.data())
def test_a_damaged_frame_raises_nothing_but_frame_error(frame: Any, data: st.DataObject) -> None:
    damaged = bytearray(encode_frame(frame))
    at = data.draw(st.integers(4, len(damaged) - 1))
    damaged[at] = data.draw(st.integers(0, 255))
    with suppress(FrameError):
        child_frames().feed(bytes(damaged))


@pytest.mark.parametrize(
    "payload",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 elements
        b"\xdb\xff\xff\xff\xffx",  # a string of as many bytes
        b"\x91" * 100_000,  # deeper than any frame
        b"\x92\xa3log\xa1\xff",  # a string that is not UTF-8
    ],
)
def test_a_hostile_payload_is_refused_without_harm(payload: bytes) -> None:
    for decoder in (child_frames(), daemon_frames()):
        with pytest.raises(FrameError):
            decoder.feed(struct.pack("<I", len(payload)) + payload)


def test_an_oversize_length_is_refused_before_its_bytes_arrive() -> None:
    with pytest.raises(FrameError, match=str(MAX_FRAME_BYTES + 1)):
        child_frames().feed(struct.pack("<I", MAX_FRAME_BYTES + 1))


def test_a_hello_of_a_later_version_is_understood() -> None:
    payload = b"\x95\xa5hello\x63\xa39.9\x07\xa3new"
    (hello,) = child_frames().feed(struct.pack("<I", len(payload)) + payload)
    assert hello == Hello(protocol=99, version="9.9", pid=7)


def test_a_value_that_msgpack_cannot_carry_is_a_frame_error() -> None:
    with pytest.raises(FrameError, match="Progress"):
        encode_frame(Progress(fraction=2**80, note=""))
    with pytest.raises(FrameError, match="Log"):
        encode_frame(Log(message="\ud800"))
