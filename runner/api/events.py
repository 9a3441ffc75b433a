"""What an engine answers: a tagged union of events, each naming its request.

For one request the order is: :class:`Started`, then any number of :class:`Delta` (and, once for
each choice, :class:`ChoiceFinished`) or of :class:`EmbeddingVector`, then exactly one
:class:`Finished` or :class:`Failed`. After :meth:`Engine.cancel` there are none.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "ChoiceFinished",
    "Delta",
    "EmbeddingVector",
    "Event",
    "Failed",
    "FinishReason",
    "Finished",
    "Started",
    "Timings",
    "TokenLogprob",
    "TopLogprob",
    "Usage",
]

#: "stop": an end-of-generation token or a stop string; "length": max_tokens or a full context.
FinishReason = Literal["stop", "length"]


class TopLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One of the likeliest tokens at a position."""

    token: str
    #: The token's exact bytes; ``token`` is their lossy UTF-8 decoding.
    token_bytes: bytes
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The token that was chosen, its natural-log probability, and what else was likely.

    Probabilities are the softmax of the model's raw logits, before temperature and filters.
    """

    token: str
    token_bytes: bytes
    logprob: float
    #: Likeliest first.
    top: tuple[TopLogprob, ...] = ()


class Usage(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Tokens, as OpenAI counts them: a prompt once, however many choices it has."""

    n_prompt: int
    n_completion: int = 0
    #: Prompt tokens that were not evaluated again because another sequence had them.
    n_cached: int = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Seconds a request spent in the engine."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class Started(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="started"):
    """The prompt is tokenised, fits, and has been admitted to the KV cache."""

    request_id: str
    n_prompt: int
    n_cached: int = 0


class Delta(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="delta"):
    """More text of one choice: whole UTF-8 characters, never part of a stop string."""

    request_id: str
    index: int
    text: str
    #: One entry per token whose text is in, or was held back before, this delta.
    logprobs: tuple[TokenLogprob, ...] = ()


class ChoiceFinished(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="choice_finished"
):
    """One choice is complete."""

    request_id: str
    index: int
    reason: FinishReason


class EmbeddingVector(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="embedding"):
    """The vector of one input."""

    request_id: str
    index: int
    #: [n_embd] f32, little-endian, L2-normalised.
    vector: bytes


class Finished(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="finished"):
    """The request is complete, and the engine has forgotten it."""

    request_id: str
    usage: Usage
    timings: Timings = Timings()


class Failed(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="failed"):
    """The request failed after it was accepted, and the engine has forgotten it.

    ``code``, ``message`` and ``param`` are those of a :class:`~runner.api.errors.RunnerError`.
    """

    request_id: str
    code: str
    message: str
    param: str | None = None


Event = Started | Delta | ChoiceFinished | EmbeddingVector | Finished | Failed
