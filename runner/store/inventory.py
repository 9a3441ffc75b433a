"""The store's books: which models there are, under which names, and which blobs nobody needs.

The index is kept in memory and written through. One lock guards it; under that lock files are
renamed, and small documents read, but no bytes of models are copied, hashed or deleted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from runner.api.errors import ModelNotFound, StoreError
from runner.store.artifact import (
    Artifact,
    ModelConfig,
    decode_manifest,
    parse_artifact,
    referenced_digests,
)
from runner.store.blobs import BlobStore
from runner.store.headers import HeaderCache
from runner.store.layout import (
    Index,
    Layout,
    added_at,
    check_root,
    describe_origin,
    is_in_place,
    source_of,
    tag_of,
)
from runner.store.ownership import Ownership
from runner.store.records import Catalog, Match, StoredModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from runner.api.sources import FoundModel, Source
    from runner.store.artifact import Descriptor
    from runner.store.intake import Intake

__all__ = ["Inventory", "unlink_all"]

_log = logging.getLogger(__name__)

#: Nobody's manifest or config is larger; ours are some kilobytes.
_MAX_DOCUMENT = 8 * 2**20


class Inventory:
    """Index, blobs and headers under one root, kept in step."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = BlobStore(root)
        self.headers = HeaderCache(root, scratch=self.blobs.scratch)
        #: Held by callers that read and then write; it is re-entrant.
        self.lock = threading.RLock()
        self._ownership = Ownership(root)
        self._layout = Layout(root, scratch=self.blobs.scratch)
        self._is_open = False
        self._index = Index(manifests=())
        self._catalog: Catalog | None = None
        self._artifacts: dict[str, Artifact] = {}
        self._references: dict[str, tuple[list[str], list[str]]] = {}
        self._reported: set[str] = set()

    @property
    def namespaces(self) -> set[str]:
        """The namespaces of sources that have left models here."""
        return self._index.namespaces()

    def open(self, namespaces: Iterable[str]) -> None:
        """Take the directory for this process and remove what an interrupted one has left.

        :raises StoreLocked: another process has it.
        :raises StoreError: it is something else, or broken.
        """
        check_root(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise StoreError(f"cannot make the model store {self.root}: {exc.strerror}") from exc
        self._ownership.acquire(os.getpid())
        try:
            check_root(self.root)
            self.blobs.prepare()
            index = self._layout.prepare()
            self._index = index.normalised({*namespaces, *index.namespaces()})
            self._sweep()
        except BaseException:
            self._ownership.release()
            raise
        self._is_open = True

    def close(self) -> None:
        """Let another process have the directory."""
        with self.lock:
            if self._is_open:
                self._is_open = False
                self._ownership.release()

    def peek(self) -> Catalog | None:
        """The catalog, if it is at hand."""
        return self._catalog

    def catalog(self) -> Catalog:
        """All models that can be read; the others are named in the log, once."""
        with self.lock:
            if self._catalog is None:
                digests = dict.fromkeys(d.digest for d in self._index.manifests)
                described = [self._describe(digest) for digest in digests]
                self._catalog = Catalog(described)
            return self._catalog

    def artifact(self, digest: str, *, name: str) -> Artifact:
        """Manifest and config of a model in the index.

        :raises ModelNotFound: it is not there any more.
        :raises StoreError: it is damaged, or of a kind that this version does not read.
        """
        with self.lock:
            if not self._index.of_digest(digest):
                raise ModelNotFound(name)
            return self._artifact(digest)

    def commit(self, tag: str, found: FoundModel, intake: Intake, *, source: Source) -> str:
        """Stage a model, then give it its name; the digest comes back.

        A failure at any point leaves the store as it was.
        """
        trash: list[Path] = []
        try:
            descriptor = intake.run(found)
            with self.lock:
                self._check_open()
                replaced = self._index.of_tag(tag)
                for item in intake.staged:
                    self.blobs.publish(item)
                self.blobs.sync()
                self._artifacts.pop(descriptor.digest, None)
                self._enter(tag, descriptor, source)
                trash = self._collect([replaced.digest] if replaced is not None else [])
        except BaseException:
            with self.lock:
                trash = self._collect(item.digest for item in intake.staged)
            raise
        finally:
            intake.discard()
            unlink_all(trash)
        return descriptor.digest

    def untag(self, tags: Iterable[str], *, digest: str) -> tuple[bool, list[Path]]:
        """Take names off one model; without any left it is deleted, and True comes back.

        :returns: also files for :func:`unlink_all`, which the caller calls without the lock.
        """
        with self.lock:
            self._check_open()
            index = self._index
            for tag in tags:
                index = index.without_tag(tag)
            if all(tag_of(d) is None for d in index.of_digest(digest)):
                index = index.without_digest(digest)
            self._write(index)
            trash = self._collect([digest])
            return not index.of_digest(digest), trash

    def local_digest(self, tag: str) -> str | None:
        """The model that a name of a local source stands for."""
        descriptor = self._index.of_tag(tag)
        return descriptor.digest if descriptor is not None and is_in_place(descriptor) else None

    def local_tags(self, digest: str | None = None) -> list[str]:
        """The names that local sources have given: all, or those of one model."""
        found = self._index.manifests if digest is None else self._index.of_digest(digest)
        return [tag for d in found if is_in_place(d) and (tag := tag_of(d)) is not None]

    def drop_local(self, is_wanted: Callable[[str, str | None], bool]) -> None:
        """Take out the names of local sources that ``is_wanted(tag, source)`` denies."""
        with self.lock:
            self._check_open()
            gone = [
                (tag, d.digest)
                for d in self._index.manifests
                if is_in_place(d)
                and (tag := tag_of(d)) is not None
                and not is_wanted(tag, source_of(d))
            ]
            if not gone:
                return
            index = self._index
            for tag, _digest in gone:
                index = index.without_tag(tag)
            self._write(index)
            trash = self._collect([digest for _tag, digest in gone])
        unlink_all(trash)

    def _enter(self, tag: str, descriptor: Descriptor, source: Source) -> None:
        known = [added_at(d) for d in self._index.of_digest(descriptor.digest)]
        origin = describe_origin(
            added=min(known, default=int(time.time())), source=source.name, in_place=source.is_local
        )
        # What a local source's name stood for before is gone, so nothing stays untagged for it.
        index = self._index.without_tag(tag) if source.is_local else self._index
        self._write(index.with_tag(tag, msgspec.structs.replace(descriptor, annotations=origin)))

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreError(f"the model store {self.root} is closed")

    def _write(self, index: Index) -> None:
        if index != self._index:
            self._layout.write(index)
            self._index = index
            self._catalog = None

    def _describe(self, digest: str) -> Match:
        descriptors = self._index.of_digest(digest)
        tags = tuple(tag for d in descriptors if (tag := tag_of(d)) is not None)
        artifact, problem = None, None
        try:
            artifact = self._artifact(digest)
        except StoreError as exc:
            problem = exc
            if digest not in self._reported:
                self._reported.add(digest)
                _log.warning("%s is left out of the list: %s", ", ".join(tags) or digest, exc)
        model = StoredModel(
            id=digest,
            tags=tags,
            created=min(added_at(d) for d in descriptors),
            config=artifact.config if artifact is not None else ModelConfig(),
            is_local=all(is_in_place(d) for d in descriptors),
            size_bytes=artifact.size_bytes if artifact is not None else 0,
        )
        return Match(model=model, problem=problem)

    def _artifact(self, digest: str) -> Artifact:
        if digest not in self._artifacts:
            manifest = self.blobs.read(digest, limit=_MAX_DOCUMENT)
            config = self.blobs.read(
                decode_manifest(digest, manifest).config.digest, limit=_MAX_DOCUMENT
            )
            self._artifacts[digest] = parse_artifact(digest, manifest, config)
        return self._artifacts[digest]

    def _collect(self, digests: Iterable[str]) -> list[Path]:
        """Retire what nobody needs of these blobs and manifests, and of what they point at."""
        try:
            needed = self._reachable(d.digest for d in self._index.manifests)
        except StoreError as exc:
            _log.warning("no blob is deleted while a manifest cannot be read: %s", exc)
            return []
        given = set(digests)
        candidates = set(given)
        for digest in given:
            # Some are no manifests and point at nothing.
            with suppress(StoreError):
                candidates |= self._reachable([digest])
        trash = self._retire(candidates - needed)
        copied = self._reachable(d.digest for d in self._index.manifests if not is_in_place(d))
        for digest in (candidates & needed) - copied:
            self.blobs.relink(digest)
        return trash

    def _sweep(self) -> None:
        """Remove blobs that no manifest leads to: their ingest was interrupted."""
        present = self.blobs.digests()
        try:
            needed = self._reachable(d.digest for d in self._index.manifests)
        except StoreError as exc:
            _log.warning("unused blobs stay while a manifest cannot be read: %s", exc)
            needed = present
        unlink_all(self._retire(present - needed))
        self.headers.prepare(needed)

    def _retire(self, digests: set[str]) -> list[Path]:
        for digest in digests:
            self.headers.drop(digest)
            self._artifacts.pop(digest, None)
            self._references.pop(digest, None)
        return self.blobs.retire(digests)

    def _reachable(self, manifests: Iterable[str]) -> set[str]:
        todo = [*manifests]
        seen: set[str] = set()
        while todo:
            digest = todo.pop()
            if digest in seen:
                continue
            seen.add(digest)
            if digest not in self._references:
                data = self.blobs.read(digest, limit=_MAX_DOCUMENT)
                self._references[digest] = referenced_digests(digest, data)
            blobs, nested = self._references[digest]
            seen.update(blobs)
            todo += nested
        return seen


def unlink_all(paths: Iterable[Path]) -> None:
    """Delete the files of retired blobs. Of large ones that takes a while."""
    for path in paths:
        # What cannot be removed now is removed when the store is opened next.
        with suppress(OSError):
            path.unlink()
