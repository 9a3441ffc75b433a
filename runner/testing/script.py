"""The fake backend's engine: follows a script, one token of every active request per step."""

from __future__ import annotations

import hashlib
import math
import os
import re
import struct
import sys
import time
from collections import deque
from itertools import accumulate
from typing import TYPE_CHECKING

import msgspec

from runner.api.engine import Engine, EngineStats, Step
from runner.api.errors import ContextLengthExceeded, RequestError
from runner.api.events import (
    ChoiceFinished,
    Delta,
    EmbeddingVector,
    Finished,
    FinishReason,
    Started,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from runner.api.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    EngineRequest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.api.backend import Placement
    from runner.api.events import Event
    from runner.api.requests import Generation
    from runner.testing.fake import FakeOptions

__all__ = ["FakeEngine", "hang"]

_SAY = re.compile(r"say (\d+) words?")


def hang() -> None:
    """Never return, without using the CPU."""
    while True:
        time.sleep(3600)


class _Choice(msgspec.Struct):
    """One answer that is being given."""

    index: int
    tokens: tuple[str, ...]
    reason: FinishReason
    n_said: int = 0


class _Running(msgspec.Struct):
    """A request that has been admitted."""

    request: EngineRequest
    prompts: tuple[str, ...]
    choices: list[_Choice]
    usage: Usage
    has_started: bool = False


class FakeEngine(Engine):
    """Answers up to ``placement.max_sequences`` requests together; the rest wait in line."""

    def __init__(self, options: FakeOptions, placement: Placement) -> None:
        self._options = options
        self._placement = placement
        self._queue: deque[_Running] = deque()
        self._active: list[_Running] = []
        self._stats = EngineStats(kv_cells=placement.kv_cells)

    def submit(self, request: EngineRequest) -> None:
        """Write the whole script of a request's answer, or refuse as the prompt says."""
        prompts = _prompts(request)
        if "refuse" in prompts:
            raise RequestError("the fake refuses, as it was told", param="messages")
        if "bug" in prompts:
            raise ValueError("a bug in the fake, as it was told")
        for prompt in prompts:
            if len(prompt.split()) >= self._placement.context_size:
                raise ContextLengthExceeded(
                    n_prompt=len(prompt.split()), context_size=self._placement.context_size
                )
        running = _Running(
            request=request,
            prompts=prompts,
            choices=self._choices(request, prompts),
            usage=Usage(n_prompt=sum(len(prompt.split()) for prompt in prompts)),
        )
        self._queue.append(running)

    def step(self) -> Step:
        """Say the next token of every choice of every active request."""
        while self._queue and len(self._active) < self._placement.max_sequences:
            self._active.append(self._queue.popleft())
        if not self._active:
            return Step(events=[], has_work=False)
        if self._options.hang_at == "step" or any("hang" in run.prompts for run in self._active):
            hang()
        if self._options.chatter_bytes:
            sys.stderr.write("x" * (self._options.chatter_bytes - 1) + "\n")
        if self._options.delay_s:
            time.sleep(self._options.delay_s)
        events = [event for running in tuple(self._active) for event in self._advance(running)]
        return Step(events=events, has_work=bool(self._active or self._queue))

    def cancel(self, request_id: str) -> None:
        """Drop a request wherever it is."""
        self._queue = deque(run for run in self._queue if run.request.id != request_id)
        self._active = [run for run in self._active if run.request.id != request_id]

    def stats(self) -> EngineStats:
        """Count what there is."""
        return msgspec.structs.replace(
            self._stats,
            active=len(self._active),
            queued=len(self._queue),
            kv_used=sum(run.usage.n_prompt + run.usage.n_completion for run in self._active),
        )

    def close(self) -> None:
        """What the unload hook calls."""
        if self._options.hang_at == "stop":
            hang()

    def _advance(self, running: _Running) -> Iterator[Event]:
        request_id = running.request.id
        if not running.has_started:
            running.has_started = True
            self._count(n_prompt=running.usage.n_prompt)
            yield Started(request_id=request_id, n_prompt=running.usage.n_prompt)
        if isinstance(running.request, EmbeddingRequest):
            for index, prompt in enumerate(running.prompts):
                vector = _vector(prompt, self._options.n_embd)
                yield EmbeddingVector(request_id=request_id, index=index, vector=vector)
        else:
            yield from self._say(running, running.request.generation)
        if not running.choices:
            self._active.remove(running)
            yield Finished(request_id=request_id, usage=running.usage)

    def _say(self, running: _Running, generation: Generation) -> Iterator[Event]:
        request_id = running.request.id
        if "crash" in running.prompts or self._stats.n_completion == self._options.crash_after:
            sys.stderr.write("fake: crashing, as I was told\n")
            os.abort()
        for choice in tuple(running.choices):
            if choice.n_said < len(choice.tokens):
                token = choice.tokens[choice.n_said]
                choice.n_said += 1
                running.usage = msgspec.structs.replace(
                    running.usage, n_completion=running.usage.n_completion + 1
                )
                self._count(n_completion=1)
                yield Delta(
                    request_id=request_id,
                    index=choice.index,
                    text=token,
                    logprobs=_logprobs(token, generation.logprobs),
                )
            if choice.n_said == len(choice.tokens):
                running.choices.remove(choice)
                yield ChoiceFinished(
                    request_id=request_id, index=choice.index, reason=choice.reason
                )

    def _choices(self, request: EngineRequest, prompts: tuple[str, ...]) -> list[_Choice]:
        if isinstance(request, EmbeddingRequest):
            return []
        generation = request.generation
        choices = []
        for index in range(len(prompts) * generation.n):
            prompt = prompts[index // generation.n]
            tokens, reason = self._script(prompt, generation)
            choices.append(_Choice(index=index, tokens=tokens, reason=reason))
        return choices

    def _script(self, prompt: str, generation: Generation) -> tuple[tuple[str, ...], FinishReason]:
        """All tokens of an answer, known from the start, and why it ends."""
        if said := _SAY.fullmatch(prompt):
            tokens = tuple(f"word{i} " for i in range(int(said[1])))
        elif self._options.echo:
            tokens = tuple(re.findall(r"\s*\S+", prompt))
        else:
            tokens = self._options.tokens
        text = "".join(tokens)
        cuts = [at for stop in generation.stop if (at := text.find(stop)) >= 0]
        if cuts:
            ends = accumulate(len(token) for token in tokens)
            pieces = (
                token[: max(0, min(cuts) - (end - len(token)))]
                for token, end in zip(tokens, ends, strict=True)
            )
            tokens = tuple(piece for piece in pieces if piece)
        room = self._placement.context_size - len(prompt.split())
        limit = min(room, generation.max_tokens if generation.max_tokens is not None else room)
        return tokens[:limit], "stop" if len(tokens) <= limit else "length"

    def _count(self, *, n_prompt: int = 0, n_completion: int = 0) -> None:
        self._stats = msgspec.structs.replace(
            self._stats,
            n_prompt=self._stats.n_prompt + n_prompt,
            n_completion=self._stats.n_completion + n_completion,
        )


def _prompts(request: EngineRequest) -> tuple[str, ...]:
    match request:
        case ChatRequest(messages=messages):
            return (messages[-1].content,)
        case CompletionRequest(prompts=inputs) | EmbeddingRequest(inputs=inputs):
            return tuple(
                text if isinstance(text, str) else " ".join(map(str, text)) for text in inputs
            )


def _vector(text: str, n_embd: int) -> bytes:
    """A direction that depends on the text alone: [n_embd] f32, L2-normalised."""
    digest = hashlib.shake_256(text.encode()).digest(n_embd)
    values = [byte - 127.5 for byte in digest]
    norm = math.sqrt(sum(value * value for value in values))
    return struct.pack(f"<{n_embd}f", *(value / norm for value in values))


def _logprobs(token: str, n_top: int | None) -> tuple[TokenLogprob, ...]:
    if n_top is None:
        return ()
    top = tuple(
        TopLogprob(token if rank == 0 else f"<{rank}>", token.encode(), -0.5 - rank)
        for rank in range(n_top)
    )
    return (TokenLogprob(token, token.encode(), -0.5, top),)
