"""The worker process: ``python -m runner.worker.child FD PARENT_PID``.

The main thread owns the engine and makes every call to it. Nothing here may import the server, the
scheduler or anyio: a worker is started while a user waits.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

import msgspec

from runner import __version__
from runner.api.backend import LoadConfig
from runner.api.engine import LoadReport
from runner.api.errors import PluginError, RunnerError, WorkerStartFailed
from runner.api.events import Failed
from runner.config import load_settings
from runner.plugins import load_backend
from runner.worker.frames import (
    PROTOCOL,
    Bye,
    Cancel,
    Events,
    Hello,
    Load,
    LoadFailed,
    Log,
    Progress,
    Ready,
    Stop,
    Submit,
)
from runner.worker.lifeline import tie_to_parent
from runner.worker.link import Link

if TYPE_CHECKING:
    from runner.api.engine import Engine
    from runner.api.events import Event
    from runner.api.requests import EngineRequest
    from runner.plugins import Backend
    from runner.worker.spec import WorkerSpec

__all__ = ["main"]

#: Native loaders report per tensor; the daemon needs no more than this.
_REPORT_INTERVAL_S = 0.05


class _Report(LoadReport):
    """Passes a load's progress on to the daemon."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._next_at = 0.0

    def progress(self, fraction: float, note: str = "") -> None:
        now = time.monotonic()
        if now >= self._next_at or fraction >= 1:
            self._next_at = now + _REPORT_INTERVAL_S
            self._link.send(Progress(fraction=min(max(fraction, 0.0), 1.0), note=note))

    def log(self, message: str) -> None:
        self._link.send(Log(message=message))


def main() -> None:
    """Load one model and serve it until the daemon says stop, or is gone."""
    fd, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    tie_to_parent(parent_pid)
    # The terminal's Ctrl-C is for the command that has the terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable(all_threads=False)
    # What a plugin prints is output like any other, and must not wait in a buffer.
    sys.stdout = sys.stderr
    link = Link(fd)
    link.send(Hello(protocol=PROTOCOL, version=__version__, pid=os.getpid()))
    try:
        _work(link)
    except Exception:  # noqa: BLE001 - the worker's outer loop: whatever it is, it is the end
        traceback.print_exc()
        _exit(1)
    _exit(0)


def _work(link: Link) -> None:
    loaded = _load(link)
    if loaded is None:
        _exit(1)
        return
    backend, engine = loaded
    link.hold_stop()
    # Until here SIGTERM kills: a load has nothing to put in order.
    signal.signal(signal.SIGTERM, lambda _signum, _frame: link.request_stop())
    link.send(Ready(stats=engine.stats()))
    _serve(engine, link)
    link.send(Bye())
    backend.unload_model(engine=engine)


def _load(link: Link) -> tuple[Backend, Engine] | None:
    """Wait for the daemon's Load and obey it; None when it failed, and the daemon has been told."""
    frame = link.receive()
    if not isinstance(frame, Load):
        raise WorkerStartFailed(f"expected a Load frame, got {type(frame).__name__}")
    spec = frame.spec
    try:
        backend = _open_backend(spec)
        config = LoadConfig(
            context_size=spec.context_size,
            max_sequences=spec.max_sequences,
            options=msgspec.convert(spec.options, backend.info.options),
        )
    except (RunnerError, msgspec.ValidationError) as exc:
        link.send(LoadFailed(code=WorkerStartFailed.code, message=str(exc)))
        return None
    try:
        engine = backend.load_model(
            model=spec.model, config=config, placement=spec.placement, report=_Report(link)
        )
    except PluginError as exc:
        # Not an error that the backend meant: its traceback says more.
        traceback.print_exc()
        link.send(LoadFailed(code=WorkerStartFailed.code, message=exc.message))
        return None
    except RunnerError as exc:
        link.send(LoadFailed(code=exc.code, message=exc.message, param=exc.param))
        return None
    return backend, engine


def _open_backend(spec: WorkerSpec) -> Backend:
    settings = load_settings()
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s"
    )
    backend = load_backend(spec.backend, settings)
    if spec.backend_version and backend.version != spec.backend_version:
        raise WorkerStartFailed(
            f"backend {spec.backend} is now version {backend.version}, and the running daemon "
            f"loaded {spec.backend_version}: restart the daemon"
        )
    return backend


def _serve(engine: Engine, link: Link) -> None:
    """Step the engine while it has work, and sleep while it has none, until told to stop."""
    has_work = False
    while True:
        frames = [] if has_work else [link.receive()]
        frames += link.pending()
        events: list[Event] = []
        for frame in frames:
            match frame:
                case Submit(request=request):
                    events += _submit(engine, request)
                case Cancel(request_id=request_id):
                    engine.cancel(request_id)
                case Stop():
                    return
        step = engine.step()
        has_work = step.has_work
        events += step.events
        # Without events the gauges may have changed all the same: a request came, or was cancelled.
        if events or frames:
            link.send(Events(events=events, stats=engine.stats()))


def _submit(engine: Engine, request: EngineRequest) -> list[Event]:
    """Give a request to the engine; its refusal concerns this request alone."""
    try:
        engine.submit(request)
    except RunnerError as exc:
        return [Failed(request_id=request.id, code=exc.code, message=exc.message, param=exc.param)]
    except Exception as exc:  # noqa: BLE001 - a fault in one request's validation is not the others'
        traceback.print_exc()
        message = f"the engine failed on this request: {type(exc).__name__}: {exc}"
        return [Failed(request_id=request.id, code=RunnerError.code, message=message)]
    return []


def _exit(status: int) -> None:
    """End without the interpreter's clean-up, in which native libraries crash or hang."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
