"""Chat completions: body, translation, answer, stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from runner.api.errors import RequestError
from runner.api.events import ChoiceFinished, Delta, Finished, FinishReason, Started
from runner.api.requests import ChatRequest
from runner.openai.choices import Choices
from runner.openai.generation import (
    AnswerInfo,
    GenerationBody,
    TimingsInfo,
    UsageInfo,
    data_line,
    make_generation,
)
from runner.openai.logprobs import ChatLogprobs
from runner.openai.messages import ChatMessage, plain_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api.events import Event

__all__ = [
    "ChatAnswer",
    "ChatBody",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCollector",
    "ChatDelta",
    "ChatReply",
    "ChatStream",
    "chat_request",
]


class ChatBody(GenerationBody, frozen=True, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1)] | None = None
    #: The present name of ``max_tokens``.
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None


class ChatReply(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the ``n`` answers."""

    index: int
    message: ChatReply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, when it is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageInfo
    timings: TimingsInfo


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a chunk adds to the message."""

    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream. ``usage`` is absent unless it was asked for."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: UsageInfo | msgspec.UnsetType | None = msgspec.UNSET
    timings: TimingsInfo | msgspec.UnsetType = msgspec.UNSET


def chat_request(body: ChatBody, request_id: str) -> ChatRequest:
    """What the engine is asked to do.

    :raises RequestError: fields that contradict each other, or content that is missing.
    """
    if body.messages is None:
        raise RequestError("messages is required", param="messages")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    return ChatRequest(
        id=request_id,
        messages=tuple(plain_message(message, i) for i, message in enumerate(body.messages)),
        generation=make_generation(
            body,
            max_tokens=_max_tokens(body),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
    )


def _max_tokens(body: ChatBody) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise RequestError(
            f"max_completion_tokens is {new} and max_tokens, its former name, {old}: send one",
            param="max_completion_tokens",
        )
    return old if new is None else new


class ChatCollector:
    """Builds the answer out of the engine's events."""

    def __init__(self, info: AnswerInfo, body: ChatBody) -> None:
        self._info = info
        self._choices = Choices(body.n or 1)
        self._wants_logprobs = bool(body.logprobs)

    def add(self, events: Sequence[Event]) -> None:
        """Take what one engine step produced."""
        self._choices.add(events)

    def answer(self) -> ChatAnswer:
        """The whole answer."""
        info, finished = self._info, self._choices.finished
        choices = [
            ChatChoice(
                index=choice.index,
                message=ChatReply(content=choice.text),
                logprobs=ChatLogprobs.of(choice.logprobs) if self._wants_logprobs else None,
                finish_reason=choice.reason,
            )
            for choice in self._choices.all
        ]
        return ChatAnswer(
            id=info.id,
            created=info.created,
            model=info.model,
            system_fingerprint=info.system_fingerprint,
            choices=choices,
            usage=UsageInfo.of(finished.usage),
            timings=TimingsInfo.of(finished.usage, finished.timings),
        )


class ChatStream:
    """Turns the engine's events into the chunks of a stream."""

    def __init__(self, info: AnswerInfo, body: ChatBody) -> None:
        self._info = info
        self._n = body.n or 1
        self._wants_logprobs = bool(body.logprobs)
        self._wants_usage = body.wants_usage

    def encode(self, events: Sequence[Event]) -> bytes:
        """All lines that one engine step amounts to."""
        return b"".join(self._lines(event) for event in events)

    def _lines(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            logprobs = ChatLogprobs.of(event.logprobs) if self._wants_logprobs else None
            delta = ChatDelta(content=event.text)
            return self._chunk(ChatChunkChoice(index=event.index, delta=delta, logprobs=logprobs))
        if isinstance(event, Started):
            return b"".join(
                self._chunk(ChatChunkChoice(index=i, delta=ChatDelta(role="assistant", content="")))
                for i in range(self._n)
            )
        if isinstance(event, ChoiceFinished):
            return self._chunk(
                ChatChunkChoice(index=event.index, delta=ChatDelta(), finish_reason=event.reason)
            )
        if isinstance(event, Finished):
            return self._usage(event) + b"data: [DONE]\n\n"
        return b""

    def _usage(self, event: Finished) -> bytes:
        if not self._wants_usage:
            return b""
        usage, timings = UsageInfo.of(event.usage), TimingsInfo.of(event.usage, event.timings)
        return self._chunk(usage=usage, timings=timings)

    def _chunk(
        self,
        *choices: ChatChunkChoice,
        usage: UsageInfo | None = None,
        timings: TimingsInfo | msgspec.UnsetType = msgspec.UNSET,
    ) -> bytes:
        info = self._info
        return data_line(
            ChatChunk(
                id=info.id,
                created=info.created,
                model=info.model,
                system_fingerprint=info.system_fingerprint,
                choices=list(choices),
                usage=usage if self._wants_usage else msgspec.UNSET,
                timings=timings,
            )
        )
