"""Text completions: body, translation, answer, stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from runner.api.events import ChoiceFinished, Delta, Finished, FinishReason
from runner.api.requests import CompletionRequest
from runner.openai.choices import Choices
from runner.openai.embeddings import TextOrTokens, prompts_of
from runner.openai.generation import (
    AnswerInfo,
    GenerationBody,
    TimingsInfo,
    UsageInfo,
    data_line,
    make_generation,
)
from runner.openai.logprobs import TextLogprobs, TextOffsets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api.events import Event

__all__ = [
    "CompletionAnswer",
    "CompletionBody",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionChunkChoice",
    "CompletionCollector",
    "CompletionStream",
    "completion_request",
]


class CompletionBody(GenerationBody, frozen=True, kw_only=True):
    """The body of ``POST /v1/completions``."""

    prompt: TextOrTokens | None = None
    #: How many of the likeliest tokens to report at each position.
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


class CompletionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, when it is not streamed."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageInfo
    timings: TimingsInfo


class CompletionChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to one continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream. ``usage`` is absent unless it was asked for."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChunkChoice]
    usage: UsageInfo | msgspec.UnsetType | None = msgspec.UNSET
    timings: TimingsInfo | msgspec.UnsetType = msgspec.UNSET


def completion_request(body: CompletionBody, request_id: str) -> CompletionRequest:
    """What the engine is asked to do.

    :raises RequestError: the prompt is missing, empty or a mixture.
    """
    prompts = prompts_of(body.prompt, param="prompt", allow_empty_text=True)
    generation = make_generation(
        body, max_tokens=body.max_tokens, logprobs=body.logprobs, n_prompts=len(prompts)
    )
    return CompletionRequest(id=request_id, prompts=prompts, generation=generation)


class CompletionCollector:
    """Builds the answer out of the engine's events.

    :param n_choices: prompts times ``n``.
    """

    def __init__(self, info: AnswerInfo, body: CompletionBody, *, n_choices: int) -> None:
        self._info = info
        self._choices = Choices(n_choices)
        self._wants_logprobs = body.logprobs is not None

    def add(self, events: Sequence[Event]) -> None:
        """Take what one engine step produced."""
        self._choices.add(events)

    def answer(self) -> CompletionAnswer:
        """The whole answer."""
        info, finished = self._info, self._choices.finished
        choices = [
            CompletionChoice(
                index=choice.index,
                text=choice.text,
                logprobs=TextOffsets().shape(choice.logprobs) if self._wants_logprobs else None,
                finish_reason=choice.reason,
            )
            for choice in self._choices.all
        ]
        return CompletionAnswer(
            id=info.id,
            created=info.created,
            model=info.model,
            system_fingerprint=info.system_fingerprint,
            choices=choices,
            usage=UsageInfo.of(finished.usage),
            timings=TimingsInfo.of(finished.usage, finished.timings),
        )


class CompletionStream:
    """Turns the engine's events into the chunks of a stream."""

    def __init__(self, info: AnswerInfo, body: CompletionBody) -> None:
        self._info = info
        self._offsets: dict[int, TextOffsets] = {}
        self._wants_logprobs = body.logprobs is not None
        self._wants_usage = body.wants_usage

    def encode(self, events: Sequence[Event]) -> bytes:
        """All lines that one engine step amounts to."""
        return b"".join(self._lines(event) for event in events)

    def _lines(self, event: Event) -> bytes:
        if isinstance(event, Delta):
            logprobs = None
            if self._wants_logprobs:
                offsets = self._offsets.setdefault(event.index, TextOffsets())
                logprobs = offsets.shape(event.logprobs)
            return self._chunk(
                CompletionChunkChoice(index=event.index, text=event.text, logprobs=logprobs)
            )
        if isinstance(event, ChoiceFinished):
            return self._chunk(
                CompletionChunkChoice(index=event.index, text="", finish_reason=event.reason)
            )
        if isinstance(event, Finished):
            done = b"data: [DONE]\n\n"
            if not self._wants_usage:
                return done
            usage, timings = UsageInfo.of(event.usage), TimingsInfo.of(event.usage, event.timings)
            return self._chunk(usage=usage, timings=timings) + done
        return b""

    def _chunk(
        self,
        *choices: CompletionChunkChoice,
        usage: UsageInfo | None = None,
        timings: TimingsInfo | msgspec.UnsetType = msgspec.UNSET,
    ) -> bytes:
        info = self._info
        return data_line(
            CompletionChunk(
                id=info.id,
                created=info.created,
                model=info.model,
                system_fingerprint=info.system_fingerprint,
                choices=list(choices),
                usage=usage if self._wants_usage else msgspec.UNSET,
                timings=timings,
            )
        )
