"""Child side: dying with the daemon, however it dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["EXIT_ORPHAN", "tie_to_parent"]

#: Exit status of a child whose parent was gone before it could tie itself to it.
EXIT_ORPHAN = 3

_PR_SET_PDEATHSIG = 1


def tie_to_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; exit at once if it has ended already.

    Linux only; elsewhere the end of file on the socket to the daemon does it alone. The signal
    comes when the *thread* that spawned us ends, so the daemon spawns from its main thread.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(EXIT_ORPHAN)
