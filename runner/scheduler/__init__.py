"""Which models are in memory, and who may use them.

:class:`Scheduler` hands out leases on workers. Its state lives in one task; what it decides is a
pure function of that state (:mod:`runner.scheduler.policy`), and what it does to the world goes
through :class:`~runner.scheduler.effects.Effects`.
"""

from runner.scheduler.keys import load_key
from runner.scheduler.lease import Lease
from runner.scheduler.scheduler import Scheduler
from runner.scheduler.state import Limits, LoadSpec, WorkerStatus

__all__ = ["Lease", "Limits", "LoadSpec", "Scheduler", "WorkerStatus", "load_key"]
