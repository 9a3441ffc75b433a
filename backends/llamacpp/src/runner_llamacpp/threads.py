"""How many processors the engine's threads may use."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["usable_cpus"]


def usable_cpus(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors of this process's affinity, or fewer where the container's quota is less.

    More threads than that would wait for each other at every barrier.
    """
    try:
        n = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has it
        n = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        if quota != "max":
            n = min(n, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        pass
    return n
