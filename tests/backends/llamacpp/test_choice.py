"""From tokens to text, with a vocabulary of our own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runner_llamacpp.choice import Choice

from runner.api import Generation, TokenLogprob

END = 255


class Bytes:
    """A vocabulary of single bytes, of which one ends the answer."""

    def piece(self, token: int, *, special: bool = False) -> bytes:
        return bytes([token])

    def is_end(self, token: int) -> bool:
        return token == END


def _run(data: bytes, *, n_room: int = 1000, **generation: Any) -> tuple[Choice, str, list[bytes]]:
    """Text and tokens of the entries that were given out."""
    vocabulary: Any = Bytes()
    choice = Choice("r", 0, Generation(logprobs=0, **generation), vocabulary, n_room)
    text, entries = "", []
    for byte in data:
        choice.take(byte, TokenLogprob("", bytes([byte]), 0.0))
        if (delta := choice.drain()) is not None:
            assert delta.text or delta.logprobs
            text += delta.text
            entries += [entry.token_bytes for entry in delta.logprobs]
        if choice.reason is not None:
            break
    return choice, text, entries


def test_entries_come_with_the_text_they_are_part_of() -> None:
    vocabulary: Any = Bytes()
    choice = Choice("r", 0, Generation(logprobs=0), vocabulary, 10)
    lengths = []
    for byte in "aé".encode():
        choice.take(byte, TokenLogprob("", bytes([byte]), 0.0))
        delta = choice.drain()
        lengths.append((delta.text, len(delta.logprobs)) if delta else None)
    assert lengths == [("a", 1), None, ("é", 2)]


def test_a_stop_string_takes_its_entries_along() -> None:
    choice, text, entries = _run(b"abcXYZdef", stop=("XYZ",))
    assert (text, b"".join(entries), choice.reason) == ("abc", b"abc", "stop")
    assert choice.n_generated == 6


def test_an_almost_stop_string_is_given_out_at_the_limit() -> None:
    choice, text, entries = _run(b"abcXY", stop=("XYZ",), max_tokens=5)
    assert (text, b"".join(entries), choice.reason) == ("abcXY", b"abcXY", "length")


def test_the_end_token_is_neither_text_nor_counted() -> None:
    choice, text, entries = _run(b"ab\xff")
    assert (text, b"".join(entries), choice.reason) == ("ab", b"ab", "stop")
    assert choice.n_generated == 2


def test_a_stop_string_completed_by_the_last_allowed_token_is_a_stop() -> None:
    choice, text, _ = _run(b"abX", stop=("X",), max_tokens=3)
    assert (text, choice.reason) == ("ab", "stop")


def test_the_room_in_the_context_is_a_limit() -> None:
    choice, text, _ = _run(b"abcdef", n_room=4, max_tokens=100)
    assert (text, choice.reason) == ("abcd", "length")


def test_a_broken_character_at_the_end_is_marked() -> None:
    _, text, entries = _run("aé".encode()[:2], max_tokens=2)
    assert (text, len(entries)) == ("a\ufffd", 2)


@given(st.binary(max_size=40).filter(lambda data: END not in data))
def test_text_and_entries_are_complete_without_stop_strings(data: bytes) -> None:
    choice, text, entries = _run(data + bytes([END]))
    assert text == data.decode("utf-8", "replace")
    assert b"".join(entries) == data
    assert choice.reason == "stop"


@given(
    st.text("abX", max_size=30),
    st.lists(st.text("abX", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_stop_string_is_never_part_of_the_text(text: str, stops: list[str]) -> None:
    _, shown, entries = _run(text.encode() + bytes([END]), stop=tuple(stops))
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert b"".join(entries) == shown.encode()
    if not any(stop in text for stop in stops):
        assert shown == text


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_exactly_the_allowed_tokens_are_generated(limit: int) -> None:
    choice, text, _ = _run(b"abcdef", max_tokens=limit)
    assert len(text) == choice.n_generated == limit
