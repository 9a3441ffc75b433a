"""Stop strings in text that arrives in pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.api.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["StopMatcher"]


class StopMatcher:
    """Finds the first stop string in a stream, and lets no part of one out before.

    The stop string that is *complete* first wins; of those complete at the same character, the
    longest. So the result does not depend on how the text was cut into pieces. Text that may yet
    become a stop string is held back, and no more than that. The cost is linear in the text, also
    for hostile stop strings: it runs between two steps of an engine.

    :raises RequestError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise RequestError("a stop string must not be empty", param="stop")
        self._stops = tuple(dict.fromkeys(stops))
        self._borders = [_border_table(stop) for stop in self._stops]
        #: Per stop string, how many of its first characters end the text so far.
        self._matched = [0] * len(self._stops)
        self._first = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self._is_hit = False

    def feed(self, text: str) -> tuple[str, bool]:
        """Take more text.

        :returns: text that is safe to emit, and whether a stop string was found. After a hit
            everything is swallowed.
        """
        if self._is_hit:
            return "", True
        if not self._held and self._first.isdisjoint(text):
            return text, False
        pending = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            if length := self._advance(char):
                self._is_hit, self._held = True, ""
                return pending[: end - length], True
        cut = len(pending) - max(self._matched)
        self._held = pending[cut:]
        return pending[:cut], False

    def flush(self) -> str:
        """End the stream: the text held back, which turned out to be no stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, char: str) -> int:
        """Move every stop string on by one character: the length of the longest now complete."""
        longest = 0
        for index, stop in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != char:
                matched = self._borders[index][matched - 1]
            if stop[matched] == char:
                matched += 1
            self._matched[index] = matched
            if matched == len(stop):
                longest = max(longest, matched)
        return longest


def _border_table(stop: str) -> list[int]:
    """Knuth, Morris and Pratt: per prefix, its longest proper prefix that is also its suffix."""
    table = [0] * len(stop)
    matched = 0
    for index in range(1, len(stop)):
        while matched and stop[index] != stop[matched]:
            matched = table[matched - 1]
        if stop[index] == stop[matched]:
            matched += 1
        table[index] = matched
    return table
