"""Stop strings: found whatever the pieces, and never let out."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.errors import RequestError
from runner.chat.stop import StopMatcher

# Few letters, so that stop strings overlap each other and the text often.
_TEXT = st.text("ab\n", max_size=24)
_STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def _pieces(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


def _run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    out, is_hit = "", False
    for piece in pieces:
        safe, is_hit = matcher.feed(piece)
        out += safe
    return out + matcher.flush(), is_hit


def _expected(stops: list[str], text: str) -> tuple[str, bool]:
    """By definition: the shortest prefix of the text that ends with a stop string."""
    for end in range(1, len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(_STOPS, _TEXT, st.lists(st.integers(0, 100), max_size=6))
def test_any_pieces_give_the_text_before_the_first_stop_string(
    stops: list[str], text: str, cuts: list[int]
) -> None:
    assert _run(stops, _pieces(text, cuts)) == _expected(stops, text)


@given(_STOPS, _TEXT)
def test_no_stop_string_is_ever_let_out(stops: list[str], text: str) -> None:
    out, _ = _run(stops, list(text))
    assert not any(stop in out for stop in stops)


@given(_STOPS, _TEXT)
def test_what_is_held_back_is_the_longest_ending_that_may_begin_a_stop_string(
    stops: list[str], text: str
) -> None:
    matcher = StopMatcher(stops)
    safe, is_hit = matcher.feed(text)
    if is_hit:
        return
    held = [k for k in range(1, len(text) + 1) if any(s.startswith(text[-k:]) for s in stops)]
    assert safe == text[: len(text) - max(held, default=0)]


def test_a_stop_string_across_three_pieces_is_found() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert matcher.feed("Paris.<|") == ("Paris.", False)
    assert matcher.feed("en") == ("", False)
    assert matcher.feed("d|> more") == ("", True)
    assert matcher.feed("after") == ("", True)
    assert matcher.flush() == ""


def test_a_false_beginning_is_let_out() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert matcher.feed("a <|") == ("a ", False)
    assert matcher.feed("b") == ("<|b", False)


def test_the_end_of_the_stream_lets_out_what_was_held_back() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.feed("line\n") == ("line", False)
    assert matcher.flush() == "\n"


def test_the_stop_string_complete_first_wins_and_then_the_longest() -> None:
    assert _run(["abcd", "bc"], ["abcd"]) == ("a", True)
    assert _run(["bc", "abc"], ["xabc"]) == ("x", True)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="must not be empty"):
        StopMatcher(["a", ""])


def test_a_hostile_stop_string_costs_no_more_than_the_text() -> None:
    matcher = StopMatcher(["a" * 20_000 + "b"])
    text = ("a" * 19_999 + "c") * 5
    start = time.process_time()
    out = "".join(matcher.feed(text[i : i + 4])[0] for i in range(0, len(text), 4))
    assert out + matcher.flush() == text
    assert time.process_time() - start < 5.0, "quadratic would take minutes"
