"""The model store: what Runner's daemon knows about the models on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.api.errors import (
    ConflictError,
    ModelNotFound,
    RunnerError,
    StoreError,
    error_from_wire,
)
from runner.api.model import Model, ModelFile
from runner.store.artifact import merge_shards, role_of
from runner.store.intake import Intake
from runner.store.inventory import Inventory, unlink_all
from runner.store.local import LocalModels, checked_name
from runner.store.records import Removal
from runner.store.references import parse_model_id, parse_reference

if TYPE_CHECKING:
    import builtins
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from runner.api.sources import FoundModel, Source
    from runner.store.records import Match, StoredModel

__all__ = ["ModelStore"]


class ModelStore:
    """Models in an OCI image layout. Make one with :meth:`open`.

    All methods are synchronous and may be called from several threads at once. What
    :meth:`resolve` gave may be removed a moment later; methods that take it then say so.
    """

    def __init__(
        self, inventory: Inventory, sources: Sequence[Source], *, local_check_s: float
    ) -> None:
        self._inventory = inventory
        self._sources = tuple(sources)
        self._local = LocalModels(inventory, sources, check_s=local_check_s)

    @classmethod
    def open(
        cls, path: Path, *, sources: Sequence[Source] = (), local_check_s: float = 2.0
    ) -> ModelStore:
        """Take the store at ``path`` for this process, making it if there is none.

        What an interrupted process has left behind is removed.

        :param local_check_s: how long an answer of the local sources is believed.
        :raises StoreLocked: another process owns it; the message has its pid.
        :raises StoreError: the directory holds something else, or is broken.
        """
        inventory = Inventory(path.absolute())
        inventory.open(source.name for source in sources)
        return cls(inventory, sources, local_check_s=local_check_s)

    def close(self) -> None:
        """Let another process have the store."""
        self._inventory.close()

    def list(self) -> builtins.list[StoredModel]:
        """All models. One that cannot be read is left out, with a warning in the log."""
        self._local.sync()
        return [*self._inventory.catalog().models]

    def snapshot(self) -> tuple[StoredModel, ...] | None:
        """What :meth:`list` would say, if that takes no I/O; None when it does. Never blocks."""
        catalog = self._inventory.peek()
        return catalog.models if catalog is not None and self._local.is_fresh else None

    def resolve(self, reference: str, *, allow_partial: bool = False) -> StoredModel:
        """The model that a name, ``name@digest``, full ID or short ID means.

        :param allow_partial: also the bare last part of a name, as ``GET /models/{ref}`` does.
        :raises RequestError: it is not a valid reference.
        :raises ModelNotFound: there is no such model; the message says how to get it.
        """
        match = self._match(reference, allow_partial=allow_partial)
        if match.problem is not None:
            raise StoreError(match.problem.message)
        return match.model

    def load(self, stored: StoredModel) -> Model:
        """A model with its header and the paths of its files, which were just checked.

        :raises ModelNotFound: it was removed.
        :raises StoreError: a file is missing, or was changed.
        """
        artifact = self._inventory.artifact(stored.id, name=stored.name)
        files = []
        headers = []
        for layer in artifact.manifest.layers:
            if (role := role_of(layer)) is None:
                continue
            path = self._inventory.blobs.locate(layer.digest, size=layer.size)
            files.append(
                ModelFile(role=role, path=str(path), digest=layer.digest, size_bytes=layer.size)
            )
            if role == "weights":
                headers.append(self._inventory.headers.get(layer.digest, path))
        if not headers:
            raise StoreError(f"the model {stored.name} has no weights that this version can use")
        return Model(
            id=stored.id, name=stored.name, header=merge_shards(headers), files=tuple(files)
        )

    def add(
        self,
        found: FoundModel,
        *,
        source: Source,
        progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> StoredModel:
        """Copy what a source has found into the store; models of local sources are linked.

        A name that stood for another model moves; that model stays, perhaps without a name.

        :param progress: called between chunks with bytes done and in all. What it raises stops the
            work, and nothing stays behind: ``anyio.from_thread.check_cancelled`` belongs in it.
        :raises ModelFileError: a file is no model.
        :raises StoreError: there is no room, or the disk fails.
        """
        tag = checked_name(found, source)
        if source.is_local:
            self._local.sync(now=True)
            return self.resolve(tag)
        intake = Intake(self._inventory.blobs, self._inventory.headers, progress=progress)
        return self.resolve(self._inventory.commit(tag, found, intake, source=source))

    def remove(self, reference: str, *, force: bool = False) -> builtins.list[Removal]:
        """Take a name off a model, and delete the model with its last name.

        By ID or digest the model goes with all its names: with several only when forced.

        :raises ModelNotFound: there is no such model.
        :raises ConflictError: it has several names, or it is a local source's.
        """
        # Before the lock is taken: a sync takes it too, and may hash for a long time.
        self._local.sync()
        with self._inventory.lock:
            match = self._find(reference)
            removals, trash = self._remove(match, reference, is_forced=force) if match else ([], [])
        if match is None:
            raise self._not_found(reference)
        unlink_all(trash)
        return removals

    def _remove(
        self, match: Match, reference: str, *, is_forced: bool
    ) -> tuple[builtins.list[Removal], builtins.list[Path]]:
        tags = match.model.tags if match.tag is None else (match.tag,)
        self._check_not_local(match, tags)
        if len(tags) > 1 and not is_forced:
            raise ConflictError(
                f'unable to delete "{reference}" (must be forced) due to multiple tag '
                f"references: {', '.join(tags)}"
            )
        is_deleted, trash = self._inventory.untag(tags, digest=match.model.id)
        removals = [Removal(untagged=tag) for tag in tags]
        if is_deleted:
            removals.append(Removal(deleted=match.model.id))
        return removals, trash

    def _check_not_local(self, match: Match, tags: Sequence[str]) -> None:
        local = self._inventory.local_tags(match.model.id)
        for tag in tags:
            if tag in local:
                raise ConflictError(
                    f'"{tag}" cannot be removed: it is no copy but read in place, where the source '
                    f'"{tag.partition("/")[0]}" finds it; to be rid of it, uninstall the package '
                    "that holds it"
                )

    def _match(self, reference: str, *, allow_partial: bool = False) -> Match:
        self._local.sync()
        match = self._find(reference, allow_partial=allow_partial)
        if match is None:
            raise self._not_found(reference)
        return match

    def _find(self, reference: str, *, allow_partial: bool = False) -> Match | None:
        catalog = self._inventory.catalog()
        return catalog.find(reference, local=self._namespaces(), allow_partial=allow_partial)

    def _namespaces(self) -> set[str]:
        return {source.name for source in self._sources} | self._inventory.namespaces

    def _not_found(self, reference: str) -> RunnerError:
        """Why there is no such model: the source that owns the name knows best."""
        reference = reference.strip()
        if parse_model_id(reference):
            return ModelNotFound(reference, hint="runner list shows the models there are")
        name = parse_reference(reference, local=self._namespaces())
        if not name.is_local:
            return ModelNotFound(reference)
        if (problem := self._local.problem(name.stored)) is not None:
            return error_from_wire(problem.code, problem.message)
        for source in self._sources:
            if source.is_local and source.name == name.namespace:
                try:
                    source.find(name.stored)
                except RunnerError as exc:
                    return exc
        return ModelNotFound(reference)
