"""One process owns a store, by a lock of the kernel's that ends with it, however it dies."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from runner.api.errors import StoreLocked
from runner.store.files import os_errors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LOCK_FILES", "Ownership"]

LOCK_FILES = (".lock", ".owner")


class Ownership:
    """The exclusive lock on a store, and a file beside it that names the owner's pid."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = FileLock(root / ".lock", timeout=0, thread_local=False)
        self._pid_file = root / ".owner"

    def acquire(self, pid: int) -> None:
        """Take the store for this process.

        :raises StoreLocked: another process has it.
        """
        with os_errors(f"lock {self._root}"):
            try:
                self._lock.acquire()
            except Timeout:
                raise StoreLocked(self._refusal()) from None
            try:
                # The lock file itself belongs to filelock.
                self._pid_file.write_text(f"{pid}\n", encoding="ascii")
            except BaseException:
                self._lock.release()
                raise

    def release(self) -> None:
        """Give the store back."""
        with suppress(OSError):
            self._pid_file.unlink()
        self._lock.release()

    def _refusal(self) -> str:
        owner = "another process"
        with suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text(encoding="ascii"))
            # A pid of a process that is gone was left by an owner before the present one.
            if psutil.pid_exists(pid):
                owner = f"process {pid}"
        return (
            f"the model store {self._root} is in use by {owner}: stop that daemon (runner stop), "
            "or give this one a store of its own with MODELS_PATH"
        )
