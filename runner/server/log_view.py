"""``GET /logs``: the log files as one text, in the order of time."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from runner.server.disconnect import cancel_on_disconnect, unwrapped
from runner.server.streaming import Body

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from litestar.types import Receive, Scope, Send

__all__ = ["LogTail", "LogView", "merge_logs"]

#: How often files that are followed are looked at.
POLL_S = 0.25
#: Of each file, at most this much of its end is shown.
MAX_BYTES = 16 * 2**20


class LogTail:
    """Reads what is new in a file that grows and is rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0
        self._rest = b""

    def read(self) -> list[bytes]:
        """The whole lines since the last call; at first, those at the file's end."""
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if self._inode is None:
                    self._offset = max(0, facts.st_size - MAX_BYTES)
                elif facts.st_ino != self._inode or facts.st_size < self._offset:
                    self._offset, self._rest = 0, b""
                self._inode = facts.st_ino
                file.seek(self._offset)
                data = file.read(MAX_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


def merge_logs(logs: Iterable[Sequence[bytes]]) -> bytes:
    """The lines of several logs by their time stamps; the earlier log comes first on a tie.

    A line without a time stamp, such as a traceback's, stays with the one before it.
    """
    entries: list[tuple[bytes, list[bytes]]] = []
    for lines in logs:
        stamp = b""
        for line in lines:
            if line.startswith(b"["):
                stamp = line.partition(b"]")[0]
                entries.append((stamp, [line]))
            elif entries and entries[-1][0] == stamp and stamp:
                entries[-1][1].append(line)
            else:
                entries.append((stamp, [line]))
    entries.sort(key=lambda entry: entry[0])
    return b"".join(line + b"\n" for _, lines in entries for line in lines)


class LogView:
    """The ASGI application that shows logs, and goes on showing them when asked to follow.

    :param paths: the service's log first.
    """

    def __init__(self, paths: Sequence[Path], *, is_following: bool) -> None:
        self._tails = [LogTail(path) for path in paths]
        self._is_following = is_following

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        body = Body(send, {"content-type": "text/plain; charset=utf-8"})
        with unwrapped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
                await body.write(await anyio.to_thread.run_sync(self._read))
                while self._is_following:
                    await anyio.sleep(POLL_S)
                    await body.write(await anyio.to_thread.run_sync(self._read))
                await body.finish()
                tasks.cancel_scope.cancel()

    def _read(self) -> bytes:
        return merge_logs([tail.read() for tail in self._tails])
