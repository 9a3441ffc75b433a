from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from runner.worker.output import MAX_LINE_CHARS, TAIL_BYTES, OutputTail, last_lines


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_lines_do_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    whole = OutputTail()
    expected = whole.feed(data) + whole.feed(b"", final=True)
    pieces = OutputTail()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines = [
        line for start, end in itertools.pairwise(edges) for line in pieces.feed(data[start:end])
    ]
    assert lines + pieces.feed(b"", final=True) == expected
    assert pieces.tail == whole.tail


def test_a_line_without_end_is_passed_on_in_pieces() -> None:
    output = OutputTail()
    lines = [line for _ in range(100) for line in output.feed("ü".encode() * 1000)]
    lines += output.feed(b"", final=True)
    assert max(map(len, lines)) == MAX_LINE_CHARS
    assert "".join(lines) == "ü" * 100_000


def test_the_tail_is_bounded_and_begins_with_a_whole_line() -> None:
    output = OutputTail()
    for i in range(10_000):
        output.feed(f"line {i}\n".encode())
    assert len(output.tail) <= TAIL_BYTES
    assert output.tail.startswith("line ")
    assert output.tail.endswith("line 9999")


def test_empty_lines_and_carriage_returns_are_not_passed_on() -> None:
    assert OutputTail().feed(b"10 %\r20 %\r\n\n  \nend\n") == ["10 %", "20 %", "end"]


def test_last_lines_keeps_the_end() -> None:
    assert last_lines("a\nb\nc", 2) == "b\nc"


def test_last_lines_leaves_out_the_stack_of_a_crash() -> None:
    text = "assert failed\nFatal Python error: Aborted\n\nCurrent thread:\n  File x\n  File y"
    assert last_lines(text) == "assert failed\nFatal Python error: Aborted"
