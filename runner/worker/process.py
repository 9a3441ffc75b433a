"""Starts worker processes, watches over them, and leaves none behind."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import anyio
from anyio.abc import UNIXSocketStream
from anyio.to_thread import run_sync

from runner import __version__
from runner.api.errors import RunnerError, WorkerStartFailed, WorkerTimeout, error_from_wire
from runner.worker.activity import read_activity
from runner.worker.codec import FrameError, child_frames, encode_frame
from runner.worker.frames import (
    PROTOCOL,
    Bye,
    Events,
    Hello,
    Load,
    LoadFailed,
    Log,
    Progress,
    Ready,
)
from runner.worker.output import OutputTail
from runner.worker.worker import Worker, WorkerExit, signal_group

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyio.abc import Process, TaskStatus

    from runner.worker.frames import ChildFrame
    from runner.worker.spec import WorkerSpec

__all__ = ["run_worker"]

#: How long each step of the stop ladder lasts when ``run_worker`` is cancelled.
_CANCELLED_GRACE_S = 1.0
#: How long the output of a process that is gone is waited for. Only a descendant that left the
#: process group can still hold the pipe.
_DRAIN_S = 1.0
_SAMPLE_INTERVAL_S = 1.0
_RECEIVE_BYTES = 256 * 1024
_UPGRADED = "; Runner was probably upgraded while its daemon ran: restart the daemon"


async def run_worker(
    spec: WorkerSpec,
    *,
    environment: Mapping[str, str],
    stall_s: float,
    log: Callable[[str], None],
    progress: Callable[[float, str], None],
    task_status: TaskStatus[Worker] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run one worker process, from its spawn until it is reaped.

    ``worker = await tg.start(partial(run_worker, ...))`` returns when the model is loaded. From
    then on nothing the process does is raised here. Cancelling stops the process and reaps it.

    Call it in the event loop of the main thread: the child dies with the thread that spawned it.

    :param stall_s: a load that shows no sign of life (progress, CPU, memory, I/O) for this long is
        ended.
    :param log: gets each line the process prints or reports.
    :param progress: gets the load's fraction and note.
    :raises WorkerStartFailed: the process ended, or raised, before the model was loaded.
    :raises WorkerTimeout: the load stalled.
    :raises RunnerError: what the backend's load hook raised on purpose.
    """
    supervisor = await _spawn(spec, environment, log, progress)
    error: RunnerError | None = None
    async with anyio.create_task_group() as tg:
        tg.start_soon(supervisor.run)
        try:
            error = await supervisor.wait_loaded(stall_s)
            if error is None:
                task_status.started(supervisor.worker)
                await supervisor.worker.wait_exited()
        finally:
            with anyio.CancelScope(shield=True):
                await supervisor.worker.stop(_CANCELLED_GRACE_S)
    if error is not None:
        raise error


async def _spawn(
    spec: WorkerSpec,
    environment: Mapping[str, str],
    log: Callable[[str], None],
    progress: Callable[[float, str], None],
) -> _Supervisor:
    ours, theirs = socket.socketpair()
    # -P: the directory the daemon happens to run in is no place to import from.
    command = [sys.executable, "-P", "-m", "runner.worker.child", str(theirs.fileno())]
    try:
        # A cancel halfway through would leave a process that nobody knows.
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                [*command, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
            channel = await UNIXSocketStream.from_socket(ours)
    except OSError as exc:
        ours.close()
        raise WorkerStartFailed(f"cannot start a worker for {spec.model.name}: {exc}") from exc
    finally:
        # As long as we hold it, the end of the child is no end of file.
        theirs.close()
    return _Supervisor(spec, process, channel, log, progress)


class _Supervisor:
    """The tasks around one child process."""

    def __init__(
        self,
        spec: WorkerSpec,
        process: Process,
        channel: UNIXSocketStream,
        log: Callable[[str], None],
        progress: Callable[[float, str], None],
    ) -> None:
        self._spec = spec
        self._process = process
        self._channel = channel
        self._log = log
        self._progress = progress
        self._output = OutputTail()
        self._outbox, self._to_send = anyio.create_memory_object_stream[bytes](math.inf)
        self._heard_at = anyio.current_time()
        self._has_greeted = False
        self._is_ready = False
        self._load_error: RunnerError | None = None
        #: Loaded, failed to load, or gone.
        self._settled = anyio.Event()
        #: Why we killed it, if we did.
        self._kill_cause = ""
        self.worker = Worker(pid=process.pid, name=spec.model.name, send=self._outbox.send_nowait)

    async def run(self) -> None:
        """Serve the process until it is gone; only its end ends this."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tg, self._to_send, self._outbox:
                tg.start_soon(self._write)
                async with anyio.create_task_group() as readers:
                    readers.start_soon(self._read)
                    readers.start_soon(self._read_output)
                    await self._process.wait()
                    # Whatever the engine has started ends with it.
                    signal_group(self._process.pid, signal.SIGKILL)
                    readers.cancel_scope.deadline = anyio.current_time() + _DRAIN_S
                tg.cancel_scope.cancel()
                self.worker.end(self._describe_exit())
            self._settled.set()
            await self._channel.aclose()
            await self._process.aclose()

    async def wait_loaded(self, stall_s: float) -> RunnerError | None:
        """Wait for the load to end, well (None) or not, or to stall."""
        stalled = not await self._settle(stall_s)
        if self._is_ready:
            return None
        if stalled:
            self._kill(f"no sign of progress for {stall_s:g} s")
        # Its last words belong to the message.
        await self.worker.stop(_CANCELLED_GRACE_S)
        how = self.worker.exit
        subject = f"the worker of {self._spec.model.name} (backend {self._spec.backend})"
        ending = how.describe() if how is not None else "did not end"
        if stalled:
            return WorkerTimeout(f"{subject} {ending}")
        if self._load_error is None:
            return WorkerStartFailed(f"{subject} {ending}")
        if type(self._load_error) is WorkerStartFailed:
            return WorkerStartFailed(f"{self._load_error.message}: {subject} {ending}")
        return self._load_error

    async def _settle(self, stall_s: float) -> bool:
        """Wait for the end of the load; False when nothing has happened for ``stall_s``."""
        interval_s = min(_SAMPLE_INTERVAL_S, stall_s / 4)
        alive_at = sampled_at = anyio.current_time()
        sample = await run_sync(read_activity, self._process.pid)
        while True:
            with anyio.move_on_after(interval_s):
                await self._settled.wait()
                return True
            before, before_at = sample, sampled_at
            sample = await run_sync(read_activity, self._process.pid)
            sampled_at = anyio.current_time()
            if sample.is_progress_since(before, sampled_at - before_at):
                alive_at = sampled_at
            alive_at = max(alive_at, self._heard_at)
            if sampled_at - alive_at >= stall_s:
                return self._settled.is_set()

    async def _read(self) -> None:
        decoder = child_frames()
        try:
            while True:
                frames = decoder.feed(await self._channel.receive(_RECEIVE_BYTES))
                self._heard_at = anyio.current_time()
                for frame in frames:
                    self._handle(frame)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            # As a rule it is just about to exit. A child without a socket is of no use.
            with anyio.move_on_after(_DRAIN_S):
                await self._process.wait()
                return
            self._kill("it closed its socket to the daemon")
        except FrameError as exc:
            self._kill(
                f"it sent what is no frame: {exc}" + ("" if self._has_greeted else _UPGRADED)
            )

    def _handle(self, frame: ChildFrame) -> None:
        match frame:
            case Events():
                self.worker.deliver(frame)
            case Progress():
                self._progress(frame.fraction, frame.note)
            case Log():
                self._log(frame.message)
            case Hello():
                self._greet(frame)
            case Ready():
                self.worker.stats = frame.stats
                self._is_ready = True
                self._settled.set()
            case LoadFailed():
                self._load_error = error_from_wire(frame.code, frame.message, param=frame.param)
                self._settled.set()
            case Bye():
                self.worker.leave()

    def _greet(self, hello: Hello) -> None:
        if (hello.protocol, hello.version) != (PROTOCOL, __version__):
            self._kill(
                f"it is of Runner {hello.version} with protocol {hello.protocol}, and the daemon "
                f"of Runner {__version__} with protocol {PROTOCOL}{_UPGRADED}"
            )
            return
        self._has_greeted = True
        self._outbox.send_nowait(encode_frame(Load(spec=self._spec)))

    async def _write(self) -> None:
        try:
            async for data in self._to_send:
                await self._channel.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            # The reader and the reaper learn of it by themselves.
            return

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        async for data in self._process.stdout:
            for line in self._output.feed(data):
                self._log(line)
        for line in self._output.feed(b"", final=True):
            self._log(line)

    def _kill(self, cause: str) -> None:
        if self._process.returncode is None:
            self._kill_cause = self._kill_cause or cause
            signal_group(self._process.pid, signal.SIGKILL)

    def _describe_exit(self) -> WorkerExit:
        returncode = self._process.returncode
        assert returncode is not None
        name = None
        if returncode < 0:
            try:
                name = signal.Signals(-returncode).name
            except ValueError:
                name = f"signal {-returncode}"
        return WorkerExit(
            returncode=returncode,
            signal=name,
            stderr_tail=self._output.tail,
            cause=self._kill_cause,
        )
