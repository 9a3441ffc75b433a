"""The listing of models, with DMR's ``dmr`` object beside OpenAI's fields."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["ModelDetails", "ModelInfo", "ModelList"]


class ModelDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the model's config says, as far as it says it."""

    context_window: int | None = None
    architecture: str | None = None
    parameters: str | None = None
    quantization: str | None = None
    size: str | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    #: Its first tag, or its digest.
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "docker"
    dmr: ModelDetails | msgspec.UnsetType = msgspec.UNSET


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]
