"""How much prompt a step takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from runner_llamacpp.pace import ALIGNMENT, BUSY_STEP_S, Pace


def test_the_first_chunk_is_small_while_others_decode() -> None:
    pace = Pace(512)
    assert pace.chunk(0, 1000, is_busy=True) == 32
    assert pace.chunk(0, 1000, is_busy=False) == ALIGNMENT


def test_a_fast_machine_takes_whole_batches() -> None:
    pace = Pace(512)
    pace.saw_prompt(128, 0.01)
    assert pace.chunk(0, 5000, is_busy=False) == 512
    assert pace.chunk(0, 5000, is_busy=True) == 512


def test_a_slow_machine_takes_little_while_others_decode() -> None:
    pace = Pace(512)
    pace.saw_prompt(128, 1.28)
    pace.saw_decode(0.1)
    assert pace.chunk(0, 5000, is_busy=True) == 16
    assert pace.chunk(0, 5000, is_busy=False) == ALIGNMENT


def test_chunks_end_at_multiples_wherever_they_begin() -> None:
    pace = Pace(512)
    pace.saw_prompt(128, 0.0128)
    assert pace.chunk(100, 5000, is_busy=False) == 4 * ALIGNMENT - 100


def test_a_rest_that_fits_is_taken_whole() -> None:
    assert Pace(512).chunk(0, 50, is_busy=False) == 50


@given(
    token_s=st.floats(1e-6, 1.0),
    decode_s=st.floats(0, 1.0),
    start=st.integers(0, 10_000),
    n_left=st.integers(1, 10_000),
    is_busy=st.booleans(),
)
def test_a_chunk_is_never_empty_too_large_or_much_too_slow(
    token_s: float, decode_s: float, start: int, n_left: int, is_busy: bool
) -> None:
    pace = Pace(512)
    pace.saw_prompt(100, 100 * token_s)
    pace.saw_decode(decode_s)
    n = pace.chunk(start, n_left, is_busy=is_busy)
    assert 1 <= n <= min(512, n_left)
    if is_busy:
        assert n <= 16 or n * token_s <= BUSY_STEP_S
