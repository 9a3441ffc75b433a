"""Asking an engine library about itself, in a child process that it may crash.

``python -m runner.worker.probe NAME`` prints the backend's ``EngineProbe`` as JSON;
:func:`probe_backend` runs that and reads it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from runner.api.backend import EngineProbe
from runner.api.errors import PluginError
from runner.config import load_settings
from runner.plugins import load_backend
from runner.worker.lifeline import tie_to_parent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyio.abc import Process

__all__ = ["probe_backend"]


async def probe_backend(
    name: str, *, environment: Mapping[str, str], timeout_s: float
) -> EngineProbe:
    """What a backend's engine library says of itself.

    Call it in the event loop of the main thread, like ``run_worker``.

    :raises PluginError: the probe raised, died, or took longer than ``timeout_s``; the message ends
        with its last words.
    """
    # The child of this module needs neither, and starts sooner without.
    import anyio  # noqa: PLC0415

    from runner.worker.worker import signal_group  # noqa: PLC0415

    answer, output = b"", b""

    async def read_output(process: Process) -> None:
        nonlocal output
        assert process.stderr is not None
        async for data in process.stderr:
            output = (output + data)[-4096:]

    try:
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                [sys.executable, "-P", "-m", "runner.worker.probe", name, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                env=dict(environment),
                start_new_session=True,
            )
    except OSError as exc:
        raise PluginError(f"cannot start the probe of backend {name}: {exc}") from exc
    try:
        with anyio.move_on_after(timeout_s) as deadline:
            async with anyio.create_task_group() as tg:
                tg.start_soon(read_output, process)
                assert process.stdout is not None
                async for data in process.stdout:
                    answer += data
            await process.wait()
    finally:
        signal_group(process.pid, signal.SIGKILL)
        with anyio.CancelScope(shield=True):
            await process.aclose()
    if deadline.cancelled_caught:
        raise PluginError(f"the probe of backend {name} took longer than {timeout_s:g} s")
    return _read_answer(name, answer, output, process.returncode)


def _read_answer(name: str, answer: bytes, output: bytes, returncode: int | None) -> EngineProbe:
    if returncode == 0:
        try:
            return msgspec.json.decode(answer, type=EngineProbe)
        except msgspec.DecodeError as exc:
            raise PluginError(f"the probe of backend {name} answered nonsense: {exc}") from exc
    lines = output.decode("utf-8", "replace").strip().splitlines()
    words = lines[-1] if lines else "it said nothing"
    raise PluginError(f"the probe of backend {name} ended with status {returncode}: {words}")


def main() -> None:
    """Print the probe of the backend that the command line names."""
    name, *parent = sys.argv[1:]
    if parent:
        tie_to_parent(int(parent[0]))
    # Only the answer goes to stdout, whatever the library prints there.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    probe = load_backend(name, load_settings()).probe_engine()
    with answer:
        answer.write(msgspec.json.encode(probe) + b"\n")
    # Native libraries may crash or hang in the interpreter's clean-up.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
