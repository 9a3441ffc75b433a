"""What this machine has: memory and cgroup limits, processors, GPUs."""

from runner.hardware.machine import read_machine

__all__ = ["read_machine"]
