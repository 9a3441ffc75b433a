"""Reading a file that cannot be trusted: nothing is read or allocated beyond its real size."""

from __future__ import annotations

import os
import stat
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from runner.api.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["FileWindow", "open_window"]

_CHUNK_BYTES = 2**20
_U64 = struct.Struct("<Q")


class FileWindow:
    """A position in a file, and the part of the file around it that has been read.

    It reads with ``pread`` and not through a memory map, because a map of a file that somebody
    truncates kills the process that looks at it.

    :param descriptor: borrowed; the caller closes it.
    """

    def __init__(self, descriptor: int, *, size_bytes: int, name: str) -> None:
        self.size_bytes = size_bytes
        self.position = 0
        self._descriptor = descriptor
        self._name = name
        self._buffer = b""
        self._start = 0

    @property
    def remaining(self) -> int:
        """Bytes from here to the end of the file."""
        return self.size_bytes - self.position

    def fail(self, what: str, *, at: int | None = None) -> NoReturn:
        """Refuse the file.

        :param at: the byte at fault; None is the present position.
        :raises ModelFileError: always.
        """
        where = self.position if at is None else at
        raise ModelFileError(f"{self._name}: {what} (at byte {where} of {self.size_bytes})")

    def take(self, n_bytes: int, what: str) -> bytes:
        """Read ``n_bytes``, which the caller has bounded.

        :param what: what is read, for the message when the file ends before.
        """
        offset = self._fill(n_bytes, what)
        self.position += n_bytes
        return self._buffer[offset : offset + n_bytes]

    def unpack(self, form: struct.Struct, what: str) -> tuple[Any, ...]:
        """Read one packed struct."""
        offset = self._fill(form.size, what)
        self.position += form.size
        return form.unpack_from(self._buffer, offset)

    def skip(self, n_bytes: int, what: str) -> None:
        """Go on without reading."""
        self._require(n_bytes, what)
        self.position += n_bytes

    def skip_strings(self, count: int, what: str) -> None:
        """Go past ``count`` strings, each a little-endian u64 length and as many bytes.

        A vocabulary has a hundred thousand of them, hence the tight loop: lengths are added up
        unchecked while they stay in the buffer, and a length that leads out of it is checked.
        """
        unpack = _U64.unpack_from
        while count:
            offset = self._fill(_U64.size, what)
            buffer, limit = self._buffer, len(self._buffer) - _U64.size
            last = offset
            while count and offset <= limit:
                last = offset
                offset += _U64.size + unpack(buffer, offset)[0]
                count -= 1
            self.position = self._start + last
            self.skip(self._start + offset - self.position, what)

    def _require(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.remaining:
            self.fail(f"the file ends within {what}: {n_bytes} bytes needed, {self.remaining} left")

    def _fill(self, n_bytes: int, what: str) -> int:
        """Have ``n_bytes`` from the position on in the buffer: their offset in it."""
        offset = self.position - self._start
        if offset >= 0 and offset + n_bytes <= len(self._buffer):
            return offset
        self._require(n_bytes, what)
        wanted = min(max(n_bytes, _CHUNK_BYTES), self.remaining)
        try:
            self._buffer = os.pread(self._descriptor, wanted, self.position)
        except OSError as exc:
            raise ModelFileError(f"{self._name}: cannot be read: {exc.strerror}") from exc
        self._start = self.position
        if len(self._buffer) < n_bytes:
            self.fail("the file became shorter while it was read")
        return 0


@contextmanager
def open_window(path: Path) -> Iterator[FileWindow]:
    """Open a regular file for reading.

    :raises ModelFileError: it cannot be opened, or is no regular file (a pipe would block).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ModelFileError(f"{path.name}: cannot be opened: {reason}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{path.name}: is not a regular file")
        yield FileWindow(descriptor, size_bytes=status.st_size, name=path.name)
    finally:
        os.close(descriptor)
