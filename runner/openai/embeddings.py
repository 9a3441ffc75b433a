"""Embeddings: body, translation, answer."""

from __future__ import annotations

import base64
from array import array
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from runner.api.errors import RequestError
from runner.api.events import EmbeddingVector, Finished
from runner.api.requests import EmbeddingRequest
from runner.openai.generation import TokenId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api.events import Event

__all__ = [
    "EmbeddingBody",
    "EmbeddingCollector",
    "EmbeddingInfo",
    "EmbeddingList",
    "EmbeddingUsage",
    "TextOrTokens",
    "embedding_request",
    "prompts_of",
]

#: A text, texts, token ids, or lists of token ids.
TextOrTokens = str | Annotated[list[str | TokenId | list[TokenId]], msgspec.Meta(max_length=2048)]


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of ``POST /v1/embeddings``."""

    model: str = ""
    #: Required; null stands for absent here so that the error can say so.
    input: TextOrTokens | None = None
    encoding_format: Literal["float", "base64"] | None = None
    keep_alive: str | float | None = None
    user: str | None = None


class EmbeddingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The vector of one input: numbers, or base64 of little-endian f32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: one vector per input, in order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingInfo]
    model: str
    usage: EmbeddingUsage


def prompts_of(
    value: TextOrTokens | None, *, param: str, allow_empty_text: bool
) -> tuple[str | tuple[int, ...], ...]:
    """The separate texts or token lists that a value of either shape means.

    :raises RequestError: absent, empty, or a mixture.
    """
    if value is None:
        raise RequestError(f"{param} is required", param=param)
    if isinstance(value, str):
        prompts: tuple[str | tuple[int, ...], ...] = (value,)
    elif all(isinstance(item, int) for item in value):
        prompts = (tuple(item for item in value if isinstance(item, int)),) if value else ()
    elif any(isinstance(item, int) for item in value):
        raise RequestError(
            f"{param} mixes token ids with other things: give one text, a list of texts, "
            "a list of token ids, or a list of such lists",
            param=param,
        )
    else:
        prompts = tuple(
            item if isinstance(item, str) else tuple(item)
            for item in value
            if not isinstance(item, int)
        )
    if not prompts:
        raise RequestError(f"{param} is empty", param=param)
    for index, prompt in enumerate(prompts):
        if not prompt and not (allow_empty_text and isinstance(prompt, str)):
            where = f"{param}[{index}]" if len(prompts) > 1 else param
            raise RequestError(f"{where} is empty", param=where)
    return prompts


def embedding_request(body: EmbeddingBody, request_id: str) -> EmbeddingRequest:
    """What the engine is asked to do."""
    inputs = prompts_of(body.input, param="input", allow_empty_text=False)
    return EmbeddingRequest(id=request_id, inputs=inputs)


class EmbeddingCollector:
    """Builds the answer out of the engine's events."""

    def __init__(self, body: EmbeddingBody) -> None:
        self._body = body
        self._vectors: dict[int, bytes] = {}
        self._n_prompt = 0

    def add(self, events: Sequence[Event]) -> None:
        """Take what one engine step produced."""
        for event in events:
            if isinstance(event, EmbeddingVector):
                self._vectors[event.index] = event.vector
            elif isinstance(event, Finished):
                self._n_prompt = event.usage.n_prompt

    def answer(self) -> EmbeddingList:
        """The vectors, in the order of the inputs."""
        data = [
            EmbeddingInfo(index=index, embedding=self._encode(vector))
            for index, vector in sorted(self._vectors.items())
        ]
        usage = EmbeddingUsage(prompt_tokens=self._n_prompt, total_tokens=self._n_prompt)
        return EmbeddingList(data=data, model=self._body.model, usage=usage)

    def _encode(self, vector: bytes) -> list[float] | str:
        if self._body.encoding_format == "base64":
            return base64.b64encode(vector).decode("ascii")
        return array("f", vector).tolist()
