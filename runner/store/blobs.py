"""The store's bytes: files named by their SHA-256, copied in or linked to where they already lie.

A linked blob is a symbolic link into somebody else's directory, registered with the size, mtime
and inode its target had when it was hashed. A link that is not registered, or whose target has
changed, is not opened; deleting one never touches the target.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from runner.api.errors import DigestMismatch, ModelFileError, StoreError
from runner.store.artifact import sha256_of
from runner.store.files import atomic_write, fsync_directory, os_errors, temporary_name

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["BlobStore", "FileState", "Link", "Staged", "digest_hex"]

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_CHUNK = 4 * 2**20
#: Left free on the disk when a model is copied in.
_SPARE_BYTES = 64 * 2**20
#: Linux's ``FICLONE``: share the blocks of another file, copy on write.
_FICLONE = 0x40049409


class FileState(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What tells that a file was not touched since it was hashed."""

    size: int
    mtime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """The state in the result of a ``stat``."""
        return cls(
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            inode=status.st_ino,
            device=status.st_dev,
        )


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A registered link: the file ``links/sha256/<hex>.json``."""

    path: str
    state: FileState


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that were hashed and wait to become a blob: a temporary file, or a file to link to."""

    digest: str
    size_bytes: int
    #: In the scratch directory; None for a link.
    temporary: Path | None = None
    link: Link | None = None

    @property
    def path(self) -> Path:
        """Where the bytes can be read now."""
        if self.link is not None:
            return Path(self.link.path)
        assert self.temporary is not None
        return self.temporary


def digest_hex(digest: str) -> str:
    """The hex digits of a digest; nothing else ever becomes part of a path.

    :raises StoreError: it is not ``sha256:<64 lower-case hex>``.
    """
    match = _DIGEST.fullmatch(digest)
    if match is None:
        raise StoreError(f"{digest[:100]!r} is not a digest: sha256: and 64 lower-case hex digits")
    return match[1]


class BlobStore:
    """Blobs and links under one root. The caller sees to it that one process does this."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "blobs" / "sha256"
        self._links = root / "links" / "sha256"
        self._scratch = root / "ingest"

    @property
    def scratch(self) -> Path:
        """Where unfinished files lie, on the blobs' file system."""
        return self._scratch

    def prepare(self) -> None:
        """Make the directories and remove what an interrupted ingest has left."""
        with os_errors(f"prepare {self._folder.parent.parent}"):
            for folder in (self._folder, self._links, self._scratch):
                folder.mkdir(parents=True, exist_ok=True)
            for leftover in self._scratch.iterdir():
                leftover.unlink()

    def path(self, digest: str) -> Path:
        """Where a blob lies, if it does."""
        return self._folder / digest_hex(digest)

    def locate(self, digest: str, *, size: int | None = None) -> Path:
        """The path of a blob that may be opened now.

        :raises StoreError: it is missing, of another size, or a link that must not be followed.
        """
        path = self.path(digest)
        try:
            status = path.lstat()
        except FileNotFoundError:
            raise StoreError(
                f"the blob {digest} is missing from the store: pull the model again"
            ) from None
        if stat.S_ISLNK(status.st_mode):
            found = self._check_link(digest, path).state.size
        elif stat.S_ISREG(status.st_mode):
            found = status.st_size
        else:
            raise StoreError(f"{path} is not a regular file")
        if size is not None and found != size:
            raise StoreError(
                f"the blob {digest} has {found} bytes instead of {size}: "
                "remove the model and pull it again"
            )
        return path

    def link_of(self, digest: str) -> Link | None:
        """The registered link of a digest, if there is a readable one."""
        try:
            return msgspec.json.decode(self._link_path(digest).read_bytes(), type=Link)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def links(self) -> dict[str, tuple[str, FileState]]:
        """Digest and state of every linked file, by its path."""
        found = {}
        for digest in self._listed(self._links, ".json"):
            if (link := self.link_of(digest)) is not None:
                found[link.path] = (digest, link.state)
        return found

    def read(self, digest: str, *, limit: int) -> bytes:
        """A small blob's bytes, checked against its digest.

        :raises StoreError: it is missing, larger than ``limit``, or not what its digest says.
        """
        path = self.path(digest)
        with os_errors(f"read the blob {digest}"):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(fd, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
                data = file.read(limit + 1)
        if len(data) > limit:
            raise StoreError(
                f"the blob {digest} is larger than the {limit} bytes a manifest or config may have"
            )
        if sha256_of(data) != digest:
            raise DigestMismatch(
                f"the blob {digest} is damaged: remove the model and pull it again"
            )
        return data

    def stage_file(self, source: Path, progress: Callable[[int, int], None]) -> Staged:
        """Copy a file in, sharing its blocks where the file system can, and hash the copy.

        :param progress: called between chunks with bytes done and in all; what it raises ends it.
        :raises ModelFileError: the source cannot be read or is no regular file.
        :raises StoreError: there is no room, or the source changed meanwhile.
        """
        temporary = temporary_name(self._scratch)
        try:
            with _open_source(source) as file:
                before = os.fstat(file.fileno())
                with os_errors(f"copy {source} into the store"), temporary.open("xb+") as copy:
                    if not _clone(file, copy):
                        self._check_room(before.st_size, source)
                        digest = _hash(file, before.st_size, progress, copy)
                    else:
                        digest = _hash(copy, before.st_size, progress)
                    copy.flush()
                    os.fsync(copy.fileno())
                    size = copy.seek(0, os.SEEK_END)
                _check_unchanged(source, before, os.fstat(file.fileno()))
            return Staged(digest=digest, size_bytes=size, temporary=temporary)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def stage_bytes(self, data: bytes) -> Staged:
        """Write a small blob's bytes to the scratch directory."""
        temporary = temporary_name(self._scratch)
        atomic_write(temporary, data, scratch=self._scratch)
        return Staged(digest=sha256_of(data), size_bytes=len(data), temporary=temporary)

    def stage_link(self, source: Path, *, known: tuple[str, FileState] | None = None) -> Staged:
        """Hash a file that will be linked to; not again if it is as ``known`` says.

        :raises ModelFileError: it cannot be read or is no regular file.
        :raises StoreError: it changed meanwhile.
        """
        with _open_source(source) as file:
            before = os.fstat(file.fileno())
            state = FileState.of(before)
            if known is not None and known[1] == state:
                digest = known[0]
            else:
                with os_errors(f"read {source}"):
                    digest = _hash(file, state.size, lambda _done, _total: None)
                _check_unchanged(source, before, os.fstat(file.fileno()))
        return Staged(
            digest=digest, size_bytes=state.size, link=Link(path=str(source), state=state)
        )

    def publish(self, staged: Staged) -> None:
        """Give staged bytes their name; quick. :meth:`sync` makes it durable."""
        path = self.path(staged.digest)
        with os_errors(f"add the blob {staged.digest}"):
            if staged.link is not None:
                self._publish_link(staged.digest, staged.link, path)
            else:
                assert staged.temporary is not None
                # Also over a blob that is there: that one may be damaged, or a link, which a copy
                # outlives. Who has the old file open keeps it.
                staged.temporary.replace(path)

    def sync(self) -> None:
        """Make the names of published blobs survive a power cut."""
        with os_errors(f"write {self._folder}"):
            fsync_directory(self._folder)

    def discard(self, staged: Iterable[Staged]) -> None:
        """Remove what was staged and never published."""
        for item in staged:
            if item.temporary is not None:
                with suppress(OSError):
                    item.temporary.unlink()

    def retire(self, digests: Iterable[str]) -> list[Path]:
        """Take blobs out of the store at once; the caller unlinks the returned files later."""
        trash = []
        for digest in digests:
            path = self.path(digest)
            with suppress(FileNotFoundError), os_errors(f"remove the blob {digest}"):
                if path.is_symlink():
                    path.unlink()
                elif path.exists():
                    temporary = temporary_name(self._scratch)
                    path.rename(temporary)
                    trash.append(temporary)
                self._link_path(digest).unlink(missing_ok=True)
        return trash

    def relink(self, digest: str) -> None:
        """Give up the copy of a blob whose linked file is still there and unchanged."""
        link, path = self.link_of(digest), self.path(digest)
        if link is None or path.is_symlink() or not _is_unchanged(link):
            return
        with os_errors(f"link the blob {digest}"):
            temporary = temporary_name(self._scratch)
            temporary.symlink_to(link.path)
            temporary.replace(path)

    def digests(self) -> set[str]:
        """Every blob there is, and every link that is registered."""
        return {*self._listed(self._folder, ""), *self._listed(self._links, ".json")}

    def _publish_link(self, digest: str, link: Link, path: Path) -> None:
        if self.link_of(digest) != link:
            atomic_write(self._link_path(digest), msgspec.json.encode(link), scratch=self._scratch)
        is_copied = path.exists() and not path.is_symlink()
        if is_copied or (path.is_symlink() and str(path.readlink()) == link.path):
            return
        temporary = temporary_name(self._scratch)
        temporary.symlink_to(link.path)
        temporary.replace(path)

    def _listed(self, folder: Path, suffix: str) -> list[str]:
        with os_errors(f"list {folder}"), os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        digests = (f"sha256:{name.removesuffix(suffix)}" for name in names if name.endswith(suffix))
        return [digest for digest in digests if _DIGEST.fullmatch(digest)]

    def _link_path(self, digest: str) -> Path:
        return self._links / f"{digest_hex(digest)}.json"

    def _check_link(self, digest: str, path: Path) -> Link:
        link = self.link_of(digest)
        with os_errors(f"read the link {path}"):
            target = str(path.readlink())
        if link is None or link.path != target:
            raise StoreError(
                f"{path} is a link that the store did not make, to {target}: delete it"
            )
        if not _is_unchanged(link):
            raise StoreError(
                f"the model file {target} was changed or removed since it was added: "
                "list the models again"
            )
        return link

    def _check_room(self, size: int, source: Path) -> None:
        free = shutil.disk_usage(self._scratch).free
        if size + _SPARE_BYTES > free:
            raise StoreError(
                f"not enough disk space for {source}, which has {size / 2**20:.0f} MiB: "
                f"{self._scratch.parent} has {free / 2**20:.0f} MiB free; "
                "remove models, or move the store"
            )


def _open_source(source: Path) -> BinaryIO:
    """Open a file that may be anything; O_NONBLOCK keeps a FIFO from holding us up."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as exc:
        raise ModelFileError(f"cannot read {source}: {exc.strerror}") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ModelFileError(f"{source} is not a regular file")
    return open(fd, "rb", buffering=0)  # noqa: PTH123 - a descriptor, not a path


def _clone(source: BinaryIO, copy: BinaryIO) -> bool:
    if sys.platform != "linux":
        return False
    try:
        fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def _hash(
    source: BinaryIO, total: int, progress: Callable[[int, int], None], copy: BinaryIO | None = None
) -> str:
    """Hash a file from its start, writing what is hashed to ``copy``."""
    hasher = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    done = 0
    source.seek(0)
    while count := source.readinto(buffer):  # type: ignore[attr-defined]  # BinaryIO lacks readinto
        hasher.update(buffer[:count])
        if copy is not None:
            copy.write(buffer[:count])
        done += count
        progress(done, total)
    return f"sha256:{hasher.hexdigest()}"


def _is_unchanged(link: Link) -> bool:
    try:
        status = Path(link.path).stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and FileState.of(status) == link.state


def _check_unchanged(source: Path, before: os.stat_result, after: os.stat_result) -> None:
    if FileState.of(before) != FileState.of(after):
        raise StoreError(f"{source} changed while it was read: try again when it is complete")
