"""What an engine is asked to do: the requests that ``Engine.submit`` takes.

Requests are checked for shape and range before they get here. What only the engine can know (does
the prompt fit, is the token id in the vocabulary) it checks in ``submit`` and raises a
:class:`~runner.api.errors.RequestError` before any output exists.

Token ids are ``int`` in ``[0, n_vocab)``. A ``None`` in :class:`Sampling` means *the backend's
default*, which the backend documents.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "EngineRequest",
    "Generation",
    "Message",
    "Sampling",
]


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the next token is chosen from the logits."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    #: None draws a fresh seed; with n > 1, choice i uses seed + i.
    seed: int | None = None
    #: token id -> added to its logit; -100 bans, +100 all but forces.
    logit_bias: dict[int, float] = {}


class Generation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much to generate, and when to stop."""

    #: Most tokens per choice; None means until the context is full.
    max_tokens: int | None = None
    #: Choices per prompt; the prompt is evaluated once.
    n: int = 1
    #: Text that ends a choice; it is never part of the output.
    stop: tuple[str, ...] = ()
    #: None: no logprobs. k >= 0: the chosen token's and the k likeliest tokens'.
    logprobs: int | None = None
    #: Go on past the model's end-of-generation tokens.
    ignore_eos: bool = False
    sampling: Sampling = Sampling()


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a chat."""

    role: str
    content: str
    name: str | None = None


class ChatRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="chat"
):
    """A chat, rendered by the model's own template; answered with ``generation.n`` choices."""

    id: str
    messages: tuple[Message, ...]
    generation: Generation = Generation()


class CompletionRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="completion"
):
    """Text to go on with, as it stands: no template.

    Choice indices run prompt by prompt: prompt ``p``'s choice ``k`` is ``p * generation.n + k``.
    """

    id: str
    prompts: tuple[str | tuple[int, ...], ...]
    generation: Generation = Generation()


class EmbeddingRequest(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="embedding"
):
    """Texts (or token ids) to be turned into one L2-normalised vector each."""

    id: str
    inputs: tuple[str | tuple[int, ...], ...]


EngineRequest = ChatRequest | CompletionRequest | EmbeddingRequest
