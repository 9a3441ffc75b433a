"""The machine as backends and the scheduler see it."""

from __future__ import annotations

import platform

from runner.api.backend import Machine
from runner.hardware.cpu import read_cpu
from runner.hardware.gpu import read_gpus
from runner.hardware.memory import read_memory

__all__ = ["read_machine"]


def read_machine() -> Machine:
    """Look at the machine now: memory changes, so ask again before a decision.

    Takes a few milliseconds, and with NVIDIA GPUs as long as their driver needs; call it in a
    thread. It never raises: what cannot be read is left out.
    """
    return Machine(
        os=platform.system().lower(), cpu=read_cpu(), memory=read_memory(), gpus=read_gpus()
    )
