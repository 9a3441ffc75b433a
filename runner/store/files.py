"""Files that are either old or new, never half: the store's only way to write.

A name appears by rename, after the bytes are on the disk, and the directory follows. The store's
OSErrors become StoreErrors here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from runner.api.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["atomic_write", "fsync_directory", "os_errors", "temporary_name"]


@contextmanager
def os_errors(doing: str) -> Iterator[None]:
    """Turn an OSError into a StoreError that says what was being done.

    :param doing: completes "cannot …", with the path.
    """
    try:
        yield
    except OSError as exc:
        hint = ": free some disk space" if exc.errno in {errno.ENOSPC, errno.EDQUOT} else ""
        raise StoreError(f"cannot {doing}: {exc.strerror or exc}{hint}") from exc


def temporary_name(folder: Path) -> Path:
    """A name in ``folder`` that nobody has."""
    return folder / f"{os.getpid()}-{secrets.token_hex(8)}"


def fsync_directory(folder: Path) -> None:
    """Make the names in a directory survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, data: bytes, *, scratch: Path) -> None:
    """Replace ``path``'s content at once, durably.

    :param scratch: a directory on the same file system for the unfinished file.
    :raises StoreError: it cannot be written; the old content is still there.
    """
    temporary = temporary_name(scratch)
    with os_errors(f"write {path}"):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        fsync_directory(path.parent)
