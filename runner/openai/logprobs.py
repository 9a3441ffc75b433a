"""Log probabilities in the two shapes OpenAI has for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api.events import TokenLogprob

__all__ = ["ChatLogprobs", "ChatToken", "ChatTopToken", "TextLogprobs", "TextOffsets"]


class ChatTopToken(msgspec.Struct, frozen=True, kw_only=True):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(msgspec.Struct, frozen=True, kw_only=True):
    """A generated token."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopToken]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of chat answers."""

    content: list[ChatToken]
    refusal: None = None

    @classmethod
    def of(cls, tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
        """From the engine's tokens."""
        return cls(content=[_chat_token(token) for token in tokens])


def _chat_token(token: TokenLogprob) -> ChatToken:
    return ChatToken(
        token=token.token,
        logprob=token.logprob,
        bytes=list(token.token_bytes),
        top_logprobs=[
            ChatTopToken(token=top.token, logprob=top.logprob, bytes=list(top.token_bytes))
            for top in token.top
        ],
    )


class TextLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of text completions: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextOffsets:
    """Counts where in its text each token of one choice begins."""

    def __init__(self) -> None:
        self._offset = 0

    def shape(self, tokens: Sequence[TokenLogprob]) -> TextLogprobs:
        """The next tokens of the choice."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.token)
        return TextLogprobs(
            tokens=[token.token for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[{top.token: top.logprob for top in token.top} for token in tokens],
            text_offset=offsets,
        )
