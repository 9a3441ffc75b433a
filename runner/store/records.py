"""What the store tells about its models, and how a reference picks one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runner.api.errors import RequestError, StoreError
from runner.store.artifact import ModelConfig
from runner.store.references import parse_model_id, parse_reference

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["Catalog", "Match", "Removal", "StoredModel"]


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the store."""

    #: Digest of the manifest, ``sha256:<64 hex>``.
    id: str
    #: Full names: ``docker.io/ai/smollm2:latest``.
    tags: tuple[str, ...]
    #: When it came into this store, in Unix seconds.
    created: int
    config: ModelConfig
    #: True: a local source's, read in place, and not to be removed here.
    is_local: bool
    #: Bytes of all its files.
    size_bytes: int

    @property
    def name(self) -> str:
        """What to call it: its first tag in short form, else its short ID."""
        if not self.tags:
            return self.id.removeprefix("sha256:")[:12]
        return familiar_name(self.tags[0])


class Removal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing a removal did; exactly one field is set. The JSON names are Docker's."""

    untagged: str | None = msgspec.field(default=None, name="Untagged")
    deleted: str | None = msgspec.field(default=None, name="Deleted")


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the books, as a search finds it."""

    model: StoredModel
    #: The full name it was found by; None when it was an ID or a digest.
    tag: str | None = None
    #: Why it cannot be read. Then it is not listed, and can only be removed.
    problem: StoreError | None = None


class Catalog:
    """All models at one moment, to be searched without I/O."""

    def __init__(self, matches: Iterable[Match]) -> None:
        self._all = tuple(matches)
        #: Those that can be read.
        self.models = tuple(match.model for match in self._all if match.problem is None)
        self._by_id = {match.model.id: match for match in self._all}
        self._by_tag = {tag: match for match in self._all for tag in match.model.tags}

    def find(
        self, text: str, *, local: Collection[str], allow_partial: bool = False
    ) -> Match | None:
        """The model a reference means: by ID, digest, full name; then by the bare last name.

        :raises RequestError: it is not a valid reference.
        """
        digits = parse_model_id(text)
        if digits is not None and (match := self._of_id(digits)) is not None:
            return match
        if digits is not None and len(digits) == 64:
            return None
        reference = parse_reference(text, local=local)
        if reference.digest is not None:
            return self._by_id.get(reference.digest)
        if (match := self._by_tag.get(reference.stored)) is not None:
            return msgspec.structs.replace(match, tag=reference.stored)
        return self._partial(text.strip()) if allow_partial else None

    def _of_id(self, digits: str) -> Match | None:
        if len(digits) == 64:
            return self._by_id.get(f"sha256:{digits}")
        return next((m for m in self._all if m.model.id.startswith(f"sha256:{digits}")), None)

    def _partial(self, text: str) -> Match | None:
        for tag, match in self._by_tag.items():
            if tag.rpartition("/")[2].partition(":")[0] == text:
                return msgspec.structs.replace(match, tag=tag)
        return None


def familiar_name(tag: str) -> str:
    """The short form of a full name, as people type it."""
    try:
        # A full name without a registry is a local source's; its own namespace makes it one here.
        return parse_reference(tag, local=(tag.partition("/")[0],)).familiar
    except RequestError:
        return tag
