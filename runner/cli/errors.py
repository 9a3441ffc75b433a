"""What goes wrong on the command's side of the wire, and hints for what goes wrong anywhere."""

from __future__ import annotations

from runner.api.errors import RunnerError

__all__ = ["DaemonError", "DaemonLost", "DaemonNotRunning", "DaemonUnreachable", "hint_for"]


class DaemonError(RunnerError):
    """The daemon could not be started, stopped or understood."""

    code = "daemon_error"


class DaemonNotRunning(DaemonError):
    """This home's daemon is not up, and the command does not start one."""

    code = "daemon_not_running"

    def __init__(self) -> None:
        super().__init__("Runner is not running")


class DaemonUnreachable(DaemonError):
    """Nothing answers at an address that was given explicitly."""

    code = "daemon_unreachable"


class DaemonLost(DaemonError):
    """The connection broke while an answer was under way."""

    code = "daemon_lost"


#: What to try next, by error code, where the message itself does not say it already.
_HINTS = {
    "backend_not_found": "`runner backends list` shows what is installed",
    "daemon_lost": "`runner status` tells whether the daemon lives, `runner logs` what happened",
    "daemon_not_running": "start it with `runner start`",
    "daemon_unreachable": "the address is RUNNER_HOST's; unset it to use this machine's own daemon",
    "queue_full": "try again in a moment; `runner ps` shows what is running",
    "shutting_down": "wait for it to stop, then try again",
    "unauthorized": "set RUNNER_API_KEY to the daemon's key",
    "worker_died": "`runner logs` shows the engine's last words",
    "worker_start_failed": "`runner logs` shows the engine's own words",
}


def hint_for(error: RunnerError) -> str | None:
    """What to try next, if there is anything worth saying."""
    return _HINTS.get(error.code)
