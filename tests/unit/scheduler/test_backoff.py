from __future__ import annotations

from runner.api.errors import PluginError, RequestError, WorkerStartFailed
from runner.scheduler import backoff

ERROR = WorkerStartFailed("it broke")


def _fail(times: int, *, gap_s: float = 0.0) -> backoff.Failures:
    failures, now = None, 0.0
    for _ in range(times):
        failures = backoff.failed_again(failures, ERROR, began_at=now, now=now)
        now = failures.retry_at + gap_s
    assert failures is not None
    return failures


def _delays(times: int) -> float:
    failures = _fail(times)
    return failures.retry_at - failures.failed_at


def test_two_failures_put_nothing_off() -> None:
    assert [_delays(1), _delays(2)] == [0.0, 0.0]


def test_delays_double_from_the_third_failure_up_to_half_a_minute() -> None:
    assert [_delays(n) for n in range(3, 11)] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_failures_far_apart_are_not_a_loop() -> None:
    assert _fail(10, gap_s=60.0).count == 1


def test_the_refusal_tells_when_and_why() -> None:
    failures = _fail(4)
    error = backoff.refusal(failures, "ai/a", failures.failed_at)
    assert isinstance(error, WorkerStartFailed)
    assert error.message == (
        "ai/a failed 4 times in a row and will be tried again in 2 s; the last error: it broke"
    )
    assert backoff.refusal(failures, "ai/a", failures.retry_at) is None


def test_wrong_requests_are_no_crashes() -> None:
    assert not backoff.counts_as_failure(RequestError("no"))
    assert backoff.counts_as_failure(PluginError("yes"))
