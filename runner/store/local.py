"""Models of local sources: listed and served without a pull, from the files where they lie.

Each file is hashed once. Later its size, mtime and inode tell that it is still the same; a file
that changed is hashed anew, and what a source does not offer any more leaves the store.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runner.api.errors import ModelFileError, RequestError, RunnerError
from runner.store.artifact import sha256_of
from runner.store.intake import Intake, file_states
from runner.store.references import parse_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api.sources import FoundModel, Source
    from runner.store.blobs import FileState
    from runner.store.inventory import Inventory

__all__ = ["LocalModels", "checked_name"]

_log = logging.getLogger(__name__)

_States = tuple[tuple[str, "FileState"], ...]


class LocalModels:
    """Keeps the books in step with what local sources offer."""

    def __init__(self, inventory: Inventory, sources: Sequence[Source], *, check_s: float) -> None:
        self._inventory = inventory
        self._sources = tuple(source for source in sources if source.is_local)
        self._check_s = check_s
        self._lock = threading.Lock()
        self._next_check = 0.0
        #: By name: the files as they were when the model was entered, or refused.
        self._seen: dict[str, _States] = {}
        self._problems: dict[str, RunnerError] = {}

    @property
    def is_fresh(self) -> bool:
        """Whether :meth:`sync` would do nothing."""
        return time.monotonic() < self._next_check

    def problem(self, tag: str) -> RunnerError | None:
        """Why a model that a source offers is not in the store."""
        return self._problems.get(tag)

    def sync(self, *, now: bool = False) -> None:
        """Look at the sources, unless that was done a moment ago (or ``now``).

        :raises StoreError: the store cannot be written.
        """
        if self.is_fresh and not now:
            return
        with self._lock:
            if self.is_fresh and not now:
                return
            self._sync()
            self._next_check = time.monotonic() + self._check_s

    def _sync(self) -> None:
        offered: dict[str, set[str]] = {}
        for source in self._sources:
            try:
                found = {checked_name(model, source): model for model in source.models()}
            except Exception:  # noqa: BLE001 - a plugin's code: one that fails must not empty the list
                _log.exception("the source %s failed; its models stay as they were", source.name)
                continue
            offered[source.name] = set(found)
            for tag, model in found.items():
                self._enter(tag, model, source)
        failed = {source.name for source in self._sources} - offered.keys()
        self._inventory.drop_local(
            lambda tag, owner: (
                owner in failed
                or (tag in offered.get(owner or "", ()) and tag not in self._problems)
            )
        )
        for tag in set(self._seen) - {tag for tags in offered.values() for tag in tags}:
            self._forget(tag)

    def _enter(self, tag: str, found: FoundModel, source: Source) -> None:
        states: _States = ()
        try:
            states = file_states(found)
            if self._seen.get(tag) == states:
                return
            if not self._is_entered(tag, found):
                blobs, headers = self._inventory.blobs, self._inventory.headers
                intake = Intake(blobs, headers, progress=_ignore, links=blobs.links())
                self._inventory.commit(tag, found, intake, source=source)
            self._problems.pop(tag, None)
            self._seen[tag] = states
        except RunnerError as exc:
            known = self._problems.get(tag)
            if known is None or known.message != exc.message:
                _log.warning("%s cannot be used: %s", tag, exc)
            self._problems[tag] = exc
            self._seen.pop(tag, None)
            if isinstance(exc, ModelFileError) and states:
                # It will be as bad next time. Other errors, such as a full disk, may pass.
                self._seen[tag] = states

    def _is_entered(self, tag: str, found: FoundModel) -> bool:
        """Whether an earlier process has entered just these files: then nothing is written."""
        digest = self._inventory.local_digest(tag)
        if digest is None:
            return False
        blobs = self._inventory.blobs
        links = blobs.links()
        try:
            layers = self._inventory.artifact(digest, name=tag).manifest.layers
            for layer in layers:
                # A link whose target has changed is refused here.
                blobs.locate(layer.digest, size=layer.size)
            weights = [links[path][0] if path in links else "" for path in found.weights]
            licenses = [sha256_of(Path(path).read_bytes()) for path in found.licenses]
        except (RunnerError, OSError):
            return False
        return [*weights, *licenses] == [layer.digest for layer in layers]

    def _forget(self, tag: str) -> None:
        self._seen.pop(tag, None)
        self._problems.pop(tag, None)


def checked_name(found: FoundModel, source: Source) -> str:
    """The full name of what a source found.

    :raises RequestError: it is no valid name, or a local source's outside of its namespace.
    """
    reference = parse_reference(found.name, local=(source.name,))
    if source.is_local and reference.namespace != source.name:
        raise RequestError(f'the source "{source.name}" may not name a model "{found.name}"')
    return reference.stored


def _ignore(_done: int, _total: int) -> None:
    """Nobody watches a link being made."""
