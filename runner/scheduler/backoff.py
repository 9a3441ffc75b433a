"""Crash loops: a worker that keeps failing is not started again at once."""

from __future__ import annotations

from math import ceil

import msgspec

from runner.api.errors import PluginError, RunnerError, WorkerError, error_from_wire

__all__ = ["STABLE_S", "Failures", "counts_as_failure", "failed_again", "refusal"]

#: Failures in a row before starts are put off.
_FREE_FAILURES = 3
_LONGEST_S = 30.0
#: A new attempt this long after the last failure starts the count anew.
_FORGET_S = 60.0
#: A worker that was ready this long has proved that it works.
STABLE_S = 30.0


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive failures of one load key."""

    count: int
    error: RunnerError
    failed_at: float
    #: New loads are refused before this time.
    retry_at: float

    def is_forgotten(self, now: float) -> bool:
        """True when it can no longer influence anything."""
        return now - self.failed_at >= _FORGET_S


def counts_as_failure(error: RunnerError) -> bool:
    """Processes and plugins crash; a wrong request is answered as often as it comes."""
    return isinstance(error, WorkerError | PluginError)


def failed_again(
    previous: Failures | None, error: RunnerError, *, began_at: float, now: float
) -> Failures:
    """The record after one more failure of an attempt that began at ``began_at``.

    The third failure in a row puts the next start off by one second; each further one doubles that.
    """
    is_consecutive = previous is not None and not previous.is_forgotten(began_at)
    count = previous.count + 1 if previous is not None and is_consecutive else 1
    excess = count - _FREE_FAILURES
    delay_s = 0.0 if excess < 0 else min(_LONGEST_S, 2.0 ** min(excess, 10))
    return Failures(count=count, error=error, failed_at=now, retry_at=now + delay_s)


def refusal(failures: Failures | None, name: str, now: float) -> RunnerError | None:
    """The error for a request that comes before the next try; None when one may be made."""
    if failures is None or now >= failures.retry_at:
        return None
    return error_from_wire(
        failures.error.code,
        f"{name} failed {failures.count} times in a row and will be tried again in "
        f"{ceil(failures.retry_at - now)} s; the last error: {failures.error.message}",
    )
