"""What chat and completions have in common: the generation parameters, usage and timings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Protocol

import msgspec

from runner.api.errors import RequestError
from runner.api.requests import Generation, Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api import events as ev

__all__ = [
    "AnswerInfo",
    "Collector",
    "GenerationBody",
    "PromptDetails",
    "StreamEncoder",
    "StreamOptions",
    "TimingsInfo",
    "UsageInfo",
    "data_line",
    "make_generation",
]

#: Choices of one request, over all its prompts.
MAX_CHOICES = 1024
#: Engines read 2**32 - 1 as "draw one", so no request may mean it by accident.
_SEEDS = 2**32 - 1

StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Bias = Annotated[float, msgspec.Meta(ge=-100, le=100)]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream carries beside the text."""

    include_usage: bool = False


class GenerationBody(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that chat and completion bodies share; null means the default, everywhere."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    stop: StopText | Annotated[list[StopText], msgspec.Meta(max_length=16)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    #: 0, and other servers' -1, consider all tokens.
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    typical_p: Probability | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Bias] | None = None
    ignore_eos: bool | None = None
    #: How long the model stays loaded after this request: ``5m``, seconds, or -1.
    keep_alive: str | float | None = None
    #: An end user's name; tells clients apart when the queue is shared out.
    user: str | None = None

    @property
    def wants_stream(self) -> bool:
        """Whether the answer is to be streamed."""
        return bool(self.stream)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


def make_generation(
    body: GenerationBody, *, max_tokens: int | None, logprobs: int | None, n_prompts: int = 1
) -> Generation:
    """The engine's view of the shared fields.

    :raises RequestError: more choices than one request may ask for.
    """
    n = body.n or 1
    if n * n_prompts > MAX_CHOICES:
        raise RequestError(
            f"{n_prompts} prompts with n={n} are {n * n_prompts} choices; "
            f"a request may have {MAX_CHOICES}",
            param="n",
        )
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Generation(
        max_tokens=max_tokens,
        n=n,
        stop=stop,
        logprobs=logprobs,
        ignore_eos=bool(body.ignore_eos),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=None if body.top_k is None else max(0, body.top_k),
            min_p=body.min_p,
            typical_p=body.typical_p,
            repeat_penalty=body.repeat_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            seed=None if body.seed in (None, -1) else body.seed % _SEEDS,
            logit_bias=body.logit_bias or {},
        ),
    )


class AnswerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What every answer and every chunk of one request repeats."""

    id: str
    created: int
    #: As the client wrote it.
    model: str
    system_fingerprint: str


class PromptDetails(msgspec.Struct, frozen=True, kw_only=True):
    """How many prompt tokens were not evaluated again."""

    cached_tokens: int


class UsageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts in OpenAI's words."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails

    @classmethod
    def of(cls, usage: ev.Usage) -> UsageInfo:
        """From the engine's counts."""
        return cls(
            prompt_tokens=usage.n_prompt,
            completion_tokens=usage.n_completion,
            total_tokens=usage.n_prompt + usage.n_completion,
            prompt_tokens_details=PromptDetails(cached_tokens=usage.n_cached),
        )


class TimingsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time went, under llama-server's names (milliseconds); not part of OpenAI's API."""

    queue_ms: float
    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_second: float

    @classmethod
    def of(cls, usage: ev.Usage, timings: ev.Timings) -> TimingsInfo:
        """From the engine's seconds."""
        evaluated = usage.n_prompt - usage.n_cached
        return cls(
            queue_ms=round(timings.queue_s * 1000, 3),
            cache_n=usage.n_cached,
            prompt_n=evaluated,
            prompt_ms=round(timings.prefill_s * 1000, 3),
            prompt_per_second=_rate(evaluated, timings.prefill_s),
            predicted_n=usage.n_completion,
            predicted_ms=round(timings.decode_s * 1000, 3),
            predicted_per_second=_rate(usage.n_completion, timings.decode_s),
        )


class Collector(Protocol):
    """Builds one answer out of the events of a request."""

    def add(self, events: Sequence[ev.Event]) -> None:
        """Take what one engine step produced."""

    def answer(self) -> Any:
        """The answer; call it after ``Finished``."""


class StreamEncoder(Protocol):
    """Turns events into the bytes of a stream."""

    def encode(self, events: Sequence[ev.Event]) -> bytes:
        """All lines that one engine step amounts to, to be written in one send."""


def data_line(payload: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"


def _rate(n: int, seconds: float) -> float:
    return round(n / seconds, 3) if seconds > 0 else 0.0
