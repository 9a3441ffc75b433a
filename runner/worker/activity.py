"""Whether a process is doing anything: how a slow load is told from a stuck one."""

from __future__ import annotations

import msgspec
import psutil

__all__ = ["Activity", "read_activity"]

#: Less than this share of one CPU is the ticking of an idle process, not work.
_IDLE_CPU_SHARE = 0.02


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What a process has used so far."""

    cpu_s: float = 0.0
    rss_bytes: int = 0
    io_bytes: int = 0

    def is_progress_since(self, earlier: Activity, elapsed_s: float) -> bool:
        """Whether it did something in the ``elapsed_s`` since ``earlier``."""
        return (
            self.cpu_s - earlier.cpu_s > _IDLE_CPU_SHARE * elapsed_s
            or self.rss_bytes > earlier.rss_bytes
            or self.io_bytes > earlier.io_bytes
        )


def read_activity(pid: int) -> Activity:
    """Ask the system about a process; zeros if it is gone. Reads files: call it in a thread."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            cpu = process.cpu_times()
            # macOS does not tell I/O.
            io = process.io_counters() if hasattr(process, "io_counters") else None
            return Activity(
                cpu_s=cpu.user + cpu.system,
                rss_bytes=process.memory_info().rss,
                # Linux counts what comes over the network only in the characters.
                io_bytes=io.read_bytes + getattr(io, "read_chars", 0) if io is not None else 0,
            )
    except psutil.Error:
        return Activity()
