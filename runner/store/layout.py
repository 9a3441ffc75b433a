"""The OCI image layout on disk, and its index: which names stand for which manifests.

Other OCI tools read the directory as it lies. A model with several names has several descriptors in
``index.json``, as the layout's specification wants it; a model without a name has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runner.api.errors import RequestError, StoreError
from runner.store.artifact import INDEX_TYPE, Descriptor
from runner.store.files import atomic_write, os_errors
from runner.store.ownership import LOCK_FILES
from runner.store.references import normalise

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = [
    "Index",
    "Layout",
    "added_at",
    "check_root",
    "describe_origin",
    "is_in_place",
    "source_of",
    "tag_of",
]

REF_NAME = "org.opencontainers.image.ref.name"
#: Unix seconds when the model came into this store.
ADDED = "model-runner.added"
#: The source that a tag comes from.
SOURCE = "model-runner.source"
#: Set on tags of local sources, whose models are read in place and go when the source does.
IN_PLACE = "model-runner.in-place"

_OURS = {
    "blobs",
    "headers",
    "index.json",
    "ingest",
    "links",
    "lost+found",
    "oci-layout",
    *LOCK_FILES,
}
_DMR_FILES = ("layout.json", "models.json")
_MAX_INDEX = 64 * 2**20


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """``index.json``. Never changed: every operation returns the next one."""

    # Always written, though a default.
    schema_version: int = msgspec.field(default_factory=lambda: 2)
    media_type: str | None = None
    manifests: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None

    def of_digest(self, digest: str) -> tuple[Descriptor, ...]:
        """The descriptors of one manifest: one for each tag, or a single one without."""
        return tuple(d for d in self.manifests if d.digest == digest)

    def of_tag(self, tag: str) -> Descriptor | None:
        """The descriptor that has a tag."""
        return next((d for d in self.manifests if tag_of(d) == tag), None)

    def with_tag(self, tag: str, descriptor: Descriptor) -> Index:
        """Let a tag stand for this manifest; the one it stood for stays, perhaps untagged."""
        without = self.without_tag(tag, keep_untagged=self._digest_of(tag) != descriptor.digest)
        rest = [
            d for d in without.manifests if d.digest != descriptor.digest or tag_of(d) is not None
        ]
        tagged = _annotate(descriptor, {REF_NAME: tag})
        return msgspec.structs.replace(self, manifests=(*rest, tagged))

    def without_tag(self, tag: str, *, keep_untagged: bool = False) -> Index:
        """Drop a tag; with ``keep_untagged`` a manifest stays that had no other."""
        manifests = []
        for descriptor in self.manifests:
            if tag_of(descriptor) != tag:
                manifests.append(descriptor)
            elif keep_untagged and len(self.of_digest(descriptor.digest)) == 1:
                manifests.append(_annotate(descriptor, dict.fromkeys((REF_NAME, SOURCE, IN_PLACE))))
        return msgspec.structs.replace(self, manifests=tuple(manifests))

    def without_digest(self, digest: str) -> Index:
        """Drop a manifest with all its tags."""
        return msgspec.structs.replace(
            self, manifests=tuple(d for d in self.manifests if d.digest != digest)
        )

    def namespaces(self) -> set[str]:
        """The namespaces that sources own, known from the tags they left here."""
        sources = [(d, source) for d in self.manifests if (source := source_of(d)) is not None]
        return {source for d, source in sources if (tag_of(d) or "").startswith(f"{source}/")}

    def normalised(self, local: Collection[str]) -> Index:
        """With the short tags that other tools wrote as full names."""
        manifests = []
        for descriptor in self.manifests:
            tag = tag_of(descriptor)
            try:
                full = normalise(tag, local=local) if tag is not None else None
            except RequestError:
                full = tag
            manifests.append(_annotate(descriptor, {REF_NAME: full}) if full != tag else descriptor)
        return msgspec.structs.replace(self, manifests=tuple(manifests))

    def _digest_of(self, tag: str) -> str | None:
        descriptor = self.of_tag(tag)
        return descriptor.digest if descriptor is not None else None


def tag_of(descriptor: Descriptor) -> str | None:
    """The tag of a descriptor, if it has one."""
    return (descriptor.annotations or {}).get(REF_NAME)


def source_of(descriptor: Descriptor) -> str | None:
    """The source that a descriptor's tag comes from, if that is known."""
    return (descriptor.annotations or {}).get(SOURCE)


def is_in_place(descriptor: Descriptor) -> bool:
    """Whether its tag belongs to a local source, which alone may remove it."""
    return IN_PLACE in (descriptor.annotations or {})


def describe_origin(*, added: int, source: str, in_place: bool) -> dict[str, str]:
    """The annotations of a new descriptor."""
    return {ADDED: str(added), SOURCE: source} | ({IN_PLACE: "true"} if in_place else {})


def added_at(descriptor: Descriptor) -> int:
    """When the manifest came into this store, in Unix seconds; 0 when another tool put it here."""
    text = (descriptor.annotations or {}).get(ADDED, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _annotate(descriptor: Descriptor, changes: dict[str, str | None]) -> Descriptor:
    annotations = {**(descriptor.annotations or {}), **changes}
    kept = {key: value for key, value in annotations.items() if value is not None}
    return msgspec.structs.replace(descriptor, annotations=kept or None)


def check_root(root: Path) -> None:
    """Refuse a directory that holds something else.

    :raises StoreError: naming what is there, and the way out.
    """
    with os_errors(f"open the model store {root}"):
        names = {path.name for path in root.iterdir()} if root.exists() else set()
    if found := [name for name in _DMR_FILES if name in names]:
        raise StoreError(
            f"{root} is a store of Docker Model Runner ({found[0]}), which Runner can neither read "
            "nor share: set MODELS_PATH (or --models-path) to another directory, and pull the "
            "models again"
        )
    if "oci-layout" not in names and (foreign := sorted(names - _OURS)):
        raise StoreError(
            f"{root} is not empty and no model store (it holds {foreign[0]}): "
            "set MODELS_PATH (or --models-path) to a directory of its own"
        )


class Layout:
    """``oci-layout`` and ``index.json`` under the store's root."""

    def __init__(self, root: Path, *, scratch: Path) -> None:
        self._marker = root / "oci-layout"
        self._index = root / "index.json"
        self._scratch = scratch

    def prepare(self) -> Index:
        """Make the layout if there is none, and read its index.

        :raises StoreError: a file is broken; nothing is changed then.
        """
        if not self._index.exists():
            self.write(Index(media_type=INDEX_TYPE, manifests=()))
        if not self._marker.exists():
            atomic_write(self._marker, b'{"imageLayoutVersion":"1.0.0"}', scratch=self._scratch)
        with os_errors(f"read {self._index}"), self._index.open("rb") as file:
            data = file.read(_MAX_INDEX + 1)
        try:
            if len(data) > _MAX_INDEX:
                raise msgspec.DecodeError(f"it is larger than {_MAX_INDEX} bytes")
            return msgspec.json.decode(data, type=Index)
        except msgspec.DecodeError as exc:
            raise StoreError(
                f"{self._index} is broken: {exc}; repair it, or move the directory away "
                "and pull the models again"
            ) from exc

    def write(self, index: Index) -> None:
        """Replace the index, durably.

        :raises StoreError: it cannot be written; the old one still holds.
        """
        atomic_write(
            self._index, msgspec.json.format(msgspec.json.encode(index)), scratch=self._scratch
        )
