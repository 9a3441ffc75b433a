"""Models in the store, as the two listings show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec

from runner.openai.models import ModelDetails, ModelInfo, ModelList

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.store import ModelStore
    from runner.store.records import StoredModel

__all__ = ["Listings", "ModelObject", "model_info", "model_object"]


class ModelObject(msgspec.Struct, frozen=True, kw_only=True):
    """A model as Docker Model Runner's own API shows it."""

    id: str
    #: Full names; absent when there are none.
    tags: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    created: int
    config: Any


def model_object(stored: StoredModel) -> ModelObject:
    """For ``GET /models``."""
    return ModelObject(
        id=stored.id,
        tags=stored.tags or msgspec.UNSET,
        created=stored.created,
        config=stored.config,
    )


def model_info(stored: StoredModel) -> ModelInfo:
    """For ``GET /v1/models``."""
    config = stored.config
    details = ModelDetails(
        context_window=config.context_size,
        architecture=config.architecture or None,
        parameters=config.parameters or None,
        quantization=config.quantization or None,
        size=config.size or None,
    )
    return ModelInfo(
        id=stored.tags[0] if stored.tags else stored.id,
        created=stored.created,
        dmr=msgspec.UNSET if details == ModelDetails() else details,
    )


class Listings:
    """Both listings as bytes, encoded again only when the store's contents have changed."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._models: Sequence[StoredModel] | None = None
        self._openai = b""
        self._docker = b""

    async def openai(self) -> bytes:
        """The answer to ``GET /v1/models``."""
        await self._refresh()
        return self._openai

    async def docker(self) -> bytes:
        """The answer to ``GET /models``."""
        await self._refresh()
        return self._docker

    async def _refresh(self) -> None:
        models: Sequence[StoredModel] | None = self._store.snapshot()
        if models is None:
            models = await anyio.to_thread.run_sync(self._store.list)
        # The store gives the same object out again as long as nothing has changed.
        if models is not self._models:
            self._openai = msgspec.json.encode(ModelList(data=[model_info(m) for m in models]))
            self._docker = msgspec.json.encode([model_object(m) for m in models])
            self._models = models
