"""How much memory this process may count on, cgroup limits included and swap left out."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from runner.api.backend import MachineMemory
from runner.hardware.cgroup import ControlGroup, control_groups, read_text

__all__ = ["parse_meminfo", "read_memory"]

#: Version 1 says *no limit* with the largest page-aligned number.
_NO_LIMIT = 2**62


def read_memory(*, root: Path | None = None) -> MachineMemory:
    """The machine's memory, or the smallest cgroup's if that is less.

    Page cache counts as available, in cgroups too: the kernel gives it back before it refuses
    memory. Swap counts as nothing: a model that is swapped is of no use.

    :param root: where ``proc`` and ``sys`` are, for tests; it implies Linux.
    """
    if root is None and sys.platform != "linux":
        memory = psutil.virtual_memory()
        return MachineMemory(total_bytes=memory.total, available_bytes=memory.available)
    root = root or Path("/")
    total, available = parse_meminfo(read_text(root / "proc/meminfo"))
    for group in control_groups("memory", root=root):
        limit, used = _limit(group), _used(group)
        if limit is not None:
            total = min(total, limit)
            available = min(available, max(0, limit - used))
    return MachineMemory(total_bytes=total, available_bytes=available)


def parse_meminfo(text: str) -> tuple[int, int]:
    """Total and available bytes from ``/proc/meminfo``; 0 for what it does not say."""
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        number = rest.split()
        if number and number[0].isdecimal():
            values[name] = int(number[0]) * 1024
    # Kernels before 3.14, and some emulations of Linux, do not say what is available.
    fallback = sum(values.get(name, 0) for name in ("MemFree", "Buffers", "Cached"))
    total = values.get("MemTotal", 0)
    return total, min(total, values.get("MemAvailable", fallback))


def _limit(group: ControlGroup) -> int | None:
    if group.version == 2:
        # Above memory.high the kernel stalls the group, which is no better than a limit.
        texts = [group.read("memory.max"), group.read("memory.high")]
    else:
        limit = _statistics(group).get("hierarchical_memory_limit")
        texts = [group.read("memory.limit_in_bytes"), str(limit)]
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < _NO_LIMIT]
    return min(limits, default=None)


def _used(group: ControlGroup) -> int:
    """Bytes in use that the kernel cannot simply drop."""
    statistics = _statistics(group)
    if group.version == 2:
        used = group.read("memory.current")
        droppable = ["active_file", "inactive_file", "slab_reclaimable"]
    else:
        used = group.read("memory.usage_in_bytes")
        droppable = ["total_active_file", "total_inactive_file"]
    if not used.isdecimal():
        return 0
    return max(0, int(used) - sum(statistics.get(name, 0) for name in droppable))


def _statistics(group: ControlGroup) -> dict[str, int]:
    lines = (line.split() for line in group.read("memory.stat").splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdecimal()}
