"""Fewer threads while other programs keep the processors busy, all of them when they are free.

llama.cpp's threads meet at a barrier many times per token, and spin there. When one of them has no
processor, the others burn theirs waiting for it: beside a single busy process, or a second engine,
two threads on two processors were measured at 1 to 3 tokens per second where one thread alone
reaches 50. So the time our threads wait for a processor is watched, and a thread given up when it
is long; the processors' idle time tells when to take it back.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Load", "ThreadGovernor", "read_load"]

#: Seconds between two looks; one costs 0.1 ms.
INTERVAL_S = 0.2
#: Seconds per second that our threads wait for a processor, together: 0.01 undisturbed, 0.7 beside
#: one busy thread.
CONTENDED = 0.4
#: Looks in a row that must find it so, as a burst of new clients is not worth a thread; and from
#: how much on one look is enough, because steps are then so slow that the next is far away.
PERSISTENT = 2
HOPELESS = 0.6
#: Idle processors that let us take back a thread: one, less what the daemon and its clients use.
IDLE = 0.7
#: How long they have to stay idle. Doubled, up to the longest, when taking it back was a mistake.
PATIENCE_S = 0.5
LONGEST_PATIENCE_S = 8.0


class Load(NamedTuple):
    """Sums that only grow, in seconds."""

    at: float
    #: Time our threads have waited for a processor.
    waited_s: float
    #: Time the processors we may use have been idle.
    idle_s: float


def read_load(
    proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic
) -> Load | None:
    """The load now; None where the system does not tell (it takes Linux with schedstats)."""
    try:
        # run time, wait time (ns), time slices; per thread
        waited_ns = sum(
            int(path.read_bytes().split()[1]) for path in (proc / "self/task").glob("*/schedstat")
        )
        usable = os.sched_getaffinity(0)
        ticks = 0
        for line in (proc / "stat").read_text(encoding="ascii").splitlines()[1:]:
            name, *fields = line.split()
            if not name.startswith("cpu"):
                break
            if int(name.removeprefix("cpu")) in usable:
                ticks += int(fields[3]) + int(fields[4])
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return Load(clock(), waited_ns / 1e9, ticks / os.sysconf("SC_CLK_TCK"))


class ThreadGovernor:
    """Decides how many threads to use, from looks at the load between steps.

    :param n_max: threads when nobody disturbs.
    :param read: gives the load; None from it ends the governor's work.
    """

    def __init__(self, n_max: int, read: Callable[[], Load | None] = read_load) -> None:
        self.n_threads = n_max
        self._n_max = n_max
        self._read = read
        self._last: Load | None = None
        self._n_contended = 0
        self._idle_since: float | None = None
        self._raised_at = float("-inf")
        self._patience_s = PATIENCE_S
        self._is_off = n_max <= 1

    def look(self, now: float) -> bool:
        """Look at the load if it is time; True when :attr:`n_threads` has changed.

        Call it after each step that computed something, so that time without work is no idleness.
        """
        if self._is_off or (self._last is not None and now - self._last.at < INTERVAL_S):
            return False
        before, load = self._last, self._read()
        self._last = load
        if load is None:
            self._is_off = True
            return False
        # The first look, or the first after a rest, has nothing to compare with.
        if before is None or not 0 < load.at - before.at < 10 * INTERVAL_S:
            self._idle_since, self._n_contended = None, 0
            return False
        span = load.at - before.at
        waited = (load.waited_s - before.waited_s) / span
        idle = (load.idle_s - before.idle_s) / span
        return self._give_up(waited, load.at) or self._take_back(idle, load.at)

    def _give_up(self, waited: float, now: float) -> bool:
        self._n_contended = self._n_contended + 1 if waited >= CONTENDED else 0
        is_clear = waited >= HOPELESS or self._n_contended >= PERSISTENT
        if self.n_threads == 1 or not is_clear:
            return False
        self._n_contended = 0
        if now - self._raised_at < 2 * self._patience_s:
            self._patience_s = min(2 * self._patience_s, LONGEST_PATIENCE_S)
        else:
            self._patience_s = PATIENCE_S
        self.n_threads = max(1, self.n_threads - max(1, round(waited)))
        self._idle_since = None
        return True

    def _take_back(self, idle: float, now: float) -> bool:
        if self.n_threads == self._n_max or idle < IDLE:
            self._idle_since = None
            return False
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self._patience_s:
            return False
        self.n_threads = min(self._n_max, self.n_threads + max(1, int(idle)))
        self._raised_at, self._idle_since = now, None
        return True
