"""Headers of weights files, parsed once and kept by the file's digest.

What is kept here can be made again from the weights at any time, so a file that does not decode
(an older version wrote it, a disk damaged it) is parsed anew and not an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runner.api.model import ModelHeader
from runner.formats import read_model_header
from runner.store.blobs import digest_hex
from runner.store.files import atomic_write, os_errors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HeaderCache"]

#: Raised when the same file would give another header: kept ones are then parsed again.
_VERSION = 1


class _Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: int
    header: ModelHeader


class HeaderCache:
    """``headers/sha256/<hex>.msgpack`` under the store's root."""

    def __init__(self, root: Path, *, scratch: Path) -> None:
        self._folder = root / "headers" / "sha256"
        self._scratch = scratch

    def prepare(self, digests: set[str]) -> None:
        """Make the directory; remove headers of blobs that are gone."""
        with os_errors(f"prepare {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.glob("*.msgpack"):
                if f"sha256:{path.stem}" not in digests:
                    path.unlink()

    def get(self, digest: str, weights: Path) -> ModelHeader:
        """The header of these weights, from here or from the file.

        :raises ModelFileError: the file is no model.
        """
        try:
            kept = msgspec.msgpack.decode(self._path(digest).read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            kept = None
        if kept is not None and kept.version == _VERSION:
            return kept.header
        return self.read(digest, weights)

    def read(self, digest: str, weights: Path) -> ModelHeader:
        """Parse the file and keep its header.

        :raises ModelFileError: the file is no model.
        """
        header = read_model_header(weights)
        data = msgspec.msgpack.encode(_Kept(version=_VERSION, header=header))
        atomic_write(self._path(digest), data, scratch=self._scratch)
        return header

    def drop(self, digest: str) -> None:
        """Forget a header."""
        with os_errors(f"remove the header of {digest}"):
            self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest_hex(digest)}.msgpack"
