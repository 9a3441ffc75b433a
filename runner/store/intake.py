"""From files that a source has found to an artifact that is ready to enter the store.

Everything slow and everything that can fail happens here, outside the store's lock: copying,
hashing, parsing. What comes out needs only to be renamed into place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from runner.api.errors import ModelFileError
from runner.formats import read_model_header
from runner.store.artifact import MANIFEST_TYPE, Descriptor, Layer, build_artifact, sha256_of
from runner.store.blobs import FileState

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.api.model import FileRole, ModelHeader
    from runner.api.sources import FoundModel
    from runner.store.blobs import BlobStore, Staged
    from runner.store.headers import HeaderCache

__all__ = ["Intake", "file_states"]

#: A licence is a text; what is larger is something else.
_MAX_LICENSE = 4 * 2**20


def file_states(found: FoundModel) -> tuple[tuple[str, FileState], ...]:
    """The state of all files of a model, to tell later whether one was touched.

    :raises ModelFileError: one is not there any more.
    """
    states = []
    for path in (*found.weights, *found.licenses):
        try:
            states.append((path, FileState.of(Path(path).stat())))
        except OSError as exc:
            raise ModelFileError(f"cannot read {path}: {exc.strerror}") from exc
    return tuple(states)


class Intake:
    """One model on its way in: use it once, then publish or discard what it has staged.

    :param links: makes weights links to where they lie; by path, the hashes known from before.
        None copies them.
    """

    def __init__(
        self,
        blobs: BlobStore,
        headers: HeaderCache,
        *,
        progress: Callable[[int, int], None],
        links: dict[str, tuple[str, FileState]] | None = None,
    ) -> None:
        self._blobs = blobs
        self._headers = headers
        self._progress = progress
        self._links = links
        self._done = 0
        self._total = 0
        self.staged: list[Staged] = []

    def run(self, found: FoundModel) -> Descriptor:
        """Stage every blob of the model; the manifest's descriptor comes back.

        :raises ModelFileError: a file is no model, or cannot be read.
        """
        if not found.weights:
            raise ModelFileError(f"{found.name} has no weights")
        if self._links is None:
            # Refused before a large file is copied; what is believed is read from the copy.
            for path in found.weights:
                read_model_header(Path(path))
        states = file_states(found)
        self._total = sum(state.size for _path, state in states)
        for path, state in states[len(found.weights) :]:
            if state.size > _MAX_LICENSE:
                raise ModelFileError(
                    f"{path} is larger than the {_MAX_LICENSE} bytes a licence may have"
                )
        layers = [self._weights(Path(path)) for path in found.weights]
        _check_shards(found, layers)
        layers += [self._license(Path(path)) for path in found.licenses]
        manifest, config = build_artifact(layers)
        self.staged += [self._blobs.stage_bytes(config), self._blobs.stage_bytes(manifest)]
        self._progress(self._total, self._total)
        return Descriptor(media_type=MANIFEST_TYPE, digest=sha256_of(manifest), size=len(manifest))

    def discard(self) -> None:
        """Remove what was staged and not published."""
        self._blobs.discard(self.staged)

    def _weights(self, path: Path) -> Layer:
        if self._links is not None:
            staged = self._blobs.stage_link(path, known=self._links.get(str(path)))
        else:
            staged = self._blobs.stage_file(path, self._report)
        self.staged.append(staged)
        self._done += staged.size_bytes
        header = self._headers.get(staged.digest, staged.path)
        return _layer("weights", path, staged, fallback="model.gguf", header=header)

    def _license(self, path: Path) -> Layer:
        staged = self._blobs.stage_file(path, self._report)
        self.staged.append(staged)
        self._done += staged.size_bytes
        return _layer("license", path, staged, fallback="LICENSE")

    def _report(self, done: int, _total: int) -> None:
        self._progress(min(self._done + done, self._total), self._total)


def _layer(
    role: FileRole, path: Path, staged: Staged, *, fallback: str, header: ModelHeader | None = None
) -> Layer:
    # A name that is not UTF-8 cannot be written into a manifest.
    name = path.name if path.name.isprintable() else fallback
    return Layer(
        role=role, name=name, digest=staged.digest, size_bytes=staged.size_bytes, header=header
    )


def _check_shards(found: FoundModel, layers: list[Layer]) -> None:
    """Refuse one part of a model that was split into several."""
    for layer in layers:
        count = layer.header.metadata.get("split.count") if layer.header is not None else None
        if isinstance(count, int) and count > 1 and count != len(found.weights):
            raise ModelFileError(
                f"{layer.name} is one of {count} parts of a model, and {len(found.weights)} were "
                "found: keep all parts in one directory under the names they were split into"
            )
