"""How many prompt tokens one step may evaluate, learnt from how long they take here."""

from __future__ import annotations

__all__ = ["Pace"]

#: A step while others wait for their next token, and one while nobody does: the second is longer
#: for speed, and still short enough for a cancel or a new request to be seen soon.
BUSY_STEP_S = 0.15
ALONE_STEP_S = 0.5
#: Chunks end at multiples of this, where they are long enough; llama.cpp's results are then the
#: same to the last bit however a prompt was cut.
ALIGNMENT = 128
_FINE = 16
_FIRST_BUSY_CHUNK = 32
_SMOOTHING = 0.3


class Pace:
    """Moving averages of the time a prompt token and a decoding step take.

    :param max_chunk: the most tokens of one call.
    """

    def __init__(self, max_chunk: int) -> None:
        self._max_chunk = max_chunk
        self._token_s: float | None = None
        self._decode_s = 0.0

    def saw_prompt(self, n_tokens: int, seconds: float) -> None:
        """A chunk of prompt took this long."""
        if n_tokens >= _FINE:
            self._token_s = _smooth(self._token_s, seconds / n_tokens)

    def saw_decode(self, seconds: float) -> None:
        """A token for every decoding sequence took this long."""
        self._decode_s = _smooth(self._decode_s or None, seconds)

    def chunk(self, start: int, n_left: int, *, is_busy: bool) -> int:
        """How many of ``n_left`` tokens from position ``start`` on to evaluate now.

        :param is_busy: others are decoding in the same step.
        """
        limit = self._limit(is_busy=is_busy)
        if n_left <= limit:
            return n_left
        for step in (ALIGNMENT, _FINE):
            aligned = (start + limit) // step * step - start
            if aligned > 0:
                return aligned
        return limit

    def _limit(self, *, is_busy: bool) -> int:
        if self._token_s is None:
            limit = _FIRST_BUSY_CHUNK if is_busy else ALIGNMENT
        elif is_busy:
            limit = max(_FINE, int((BUSY_STEP_S - self._decode_s) / self._token_s))
        else:
            limit = max(ALIGNMENT, int(ALONE_STEP_S / self._token_s))
        return min(limit, self._max_chunk)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + _SMOOTHING * (new - old)
