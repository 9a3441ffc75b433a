"""Gathers the choices of one request out of the engine's events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.api.events import ChoiceFinished, Delta, Finished, FinishReason, TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api.events import Event

__all__ = ["Choice", "Choices"]


class Choice:
    """One choice: its text so far, and why it ended."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.logprobs: list[TokenLogprob] = []
        self.reason: FinishReason = "stop"
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self._texts)

    def append(self, delta: Delta) -> None:
        """Take the next piece."""
        self._texts.append(delta.text)
        self.logprobs.extend(delta.logprobs)


class Choices:
    """All choices of a request."""

    def __init__(self, n: int) -> None:
        self.all = [Choice(index) for index in range(n)]
        self._finished: Finished | None = None

    @property
    def finished(self) -> Finished:
        """The last event; there must have been one."""
        assert self._finished is not None
        return self._finished

    def add(self, events: Sequence[Event]) -> None:
        """Take what one engine step produced."""
        for event in events:
            if isinstance(event, Delta):
                self.all[event.index].append(event)
            elif isinstance(event, ChoiceFinished):
                self.all[event.index].reason = event.reason
            elif isinstance(event, Finished):
                self._finished = event
