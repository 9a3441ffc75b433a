"""Real child processes: requests, and every way in which a worker or its load can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import psutil
import pytest

from runner.api import (
    Delta,
    EmbeddingRequest,
    EmbeddingVector,
    EngineStats,
    Finished,
    RequestError,
    RunnerError,
    Started,
    UnsupportedOperation,
    WorkerDied,
    WorkerStartFailed,
    WorkerTimeout,
)
from runner.testing.distribution import install_fake
from runner.testing.waiting import wait_until, wait_until_async
from runner.worker.output import TAIL_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from runner.api import ChatRequest, EngineRequest, Event
    from runner.worker.worker import Worker

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

#: The fixture's type; a conftest cannot be imported.
StartWorker = Any

#: A backend made of the fake's hooks; a test appends what differs.
ROGUE = """
import json, os, subprocess, sys
from runner.api import BackendInfo, UnsupportedOperation, hookimpl
from runner.testing.fake import *
from runner.testing.fake import (FakeOptions, runner_estimate_memory, runner_hardware_support,
    runner_probe_engine)
from runner.testing.script import FakeEngine

@hookimpl
def runner_backend_info():
    return BackendInfo(name="rogue", description="", formats=("gguf",), options=FakeOptions)
"""


def install_rogue(site: Path, load: str) -> None:
    """A backend whose load hook is ``load``, the body of a function of all its arguments."""
    install_fake(site, name="rogue", module="rogue_backend")
    body = "".join(f"    {line}\n" for line in load.strip().splitlines())
    hook = f"\n@hookimpl\ndef runner_load_model(model, config, placement, report):\n{body}"
    (site / "rogue_backend.py").write_text(ROGUE + hook)


async def ask(worker: Worker, request: EngineRequest) -> list[Event]:
    async with worker.submit(request) as stream:
        return [event async for events in stream for event in events]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def error_of_load(start: Any, **options: Any) -> RunnerError:
    with pytest.RaisesGroup(RunnerError) as caught:
        async with start(**options):
            pass
    (error,) = caught.value.exceptions
    assert isinstance(error, RunnerError)
    return error


async def test_a_request_streams_from_started_to_finished(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with start_worker() as worker:
        events = await ask(worker, chat("r", "hi"))
        assert events[0] == Started(request_id="r", n_prompt=1)
        assert text_of(events) == "Hello, world!"
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.n_completion == 4
        assert worker.stats.n_completion == 4
        assert worker.is_alive
    assert worker.exit is not None
    assert worker.exit.returncode == 0
    assert not worker.is_alive


async def test_many_requests_are_answered_together(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    answers: dict[int, str] = {}
    async with start_worker() as worker:

        async def one(i: int) -> None:
            answers[i] = text_of(await ask(worker, chat(f"r{i}", f"say {i} words")))

        async with anyio.create_task_group() as tg:
            for i in range(30):
                tg.start_soon(one, i)
    assert answers == {i: "".join(f"word{k} " for k in range(i)) for i in range(30)}


async def test_embeddings_arrive_as_bytes(start_worker: StartWorker) -> None:
    async with start_worker(n_embd=16) as worker:
        events = await ask(worker, EmbeddingRequest(id="e", inputs=("one", "two", (1, 2))))
    vectors = [event.vector for event in events if isinstance(event, EmbeddingVector)]
    assert [len(vector) for vector in vectors] == [64, 64, 64]


async def test_leaving_a_stream_early_cancels_it_in_the_engine(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with start_worker(delay_s=0.005) as worker:
        async with worker.submit(chat("r", "say 90000 words")) as stream:
            await anext(stream)
            assert worker.stats.active == 1
        await wait_until_async(lambda: worker.stats.active == 0)
        assert worker.stats.n_completion < 90000
        assert text_of(await ask(worker, chat("next", "hi"))) == "Hello, world!"


async def test_a_cancelled_reader_cancels_its_request(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with start_worker(delay_s=0.005) as worker:
        async with anyio.create_task_group() as tg:
            tg.start_soon(ask, worker, chat("r", "say 90000 words"))
            await wait_until_async(lambda: worker.stats.active == 1)
            tg.cancel_scope.cancel()
        await wait_until_async(lambda: worker.stats.active == 0)


async def test_a_slow_reader_gets_merged_text_and_stalls_nobody(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    n_words = 20_000
    async with (
        start_worker() as worker,
        worker.submit(chat("slow", f"say {n_words} words")) as slow,
    ):
        assert text_of(await ask(worker, chat("quick", "hi"))) == "Hello, world!"
        await wait_until_async(lambda: worker.stats.n_completion == n_words + 4)
        (events,) = [events async for events in slow]
    assert len(events) == 4
    assert text_of(events) == "".join(f"word{i} " for i in range(n_words))


async def test_sigkill_fails_only_its_own_requests(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with (
        start_worker(delay_s=0.01, chatter_bytes=20) as victim,
        start_worker(delay_s=0.01) as bystander,
        bystander.submit(chat("b", "say 20 words")) as survivor,
        victim.submit(chat("v1", "say 90000 words")) as first,
        victim.submit(chat("v2", "say 90000 words")) as second,
    ):
        await anext(first)
        os.kill(victim.pid, signal.SIGKILL)
        for stream in (first, second):
            with pytest.raises(WorkerDied, match=r"(?s)killed by SIGKILL.*x{19}"):
                async for _ in stream:
                    pass
        assert victim.exit is not None
        assert (victim.exit.returncode, victim.exit.signal) == (-9, "SIGKILL")
        events = [event async for events in survivor for event in events]
        assert isinstance(events[-1], Finished)


async def test_what_was_said_before_a_crash_is_delivered(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    heard = ""
    async with start_worker(crash_after=3) as worker:
        with pytest.raises(WorkerDied, match=r"(?s)SIGABRT.*crashing, as I was told"):
            async with worker.submit(chat("r", "hi")) as stream:
                async for events in stream:
                    heard += text_of(events)
    assert heard == "Hello, world"


async def test_a_refusal_concerns_one_request(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with start_worker(delay_s=0.01) as worker, worker.submit(chat("r", "hi")) as stream:
        with pytest.raises(RequestError, match="refuses") as caught:
            await ask(worker, chat("bad", "refuse"))
        assert caught.value.param == "messages"
        assert text_of([event async for events in stream for event in events]) == "Hello, world!"


async def test_a_bug_in_submit_fails_one_request_and_is_logged(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    lines: list[str] = []
    async with start_worker(log=lines.append) as worker:
        with pytest.raises(RunnerError, match="ValueError: a bug") as caught:
            await ask(worker, chat("bad", "bug"))
        assert caught.value.code == "internal_error"
        assert text_of(await ask(worker, chat("good", "hi"))) == "Hello, world!"
    assert any("Traceback" in line for line in lines)


async def test_a_raise_in_a_step_ends_the_worker_with_its_traceback(
    start_worker: StartWorker, site: Path, chat: Callable[..., ChatRequest]
) -> None:
    install_rogue(
        site,
        """
class Rogue(FakeEngine):
    def step(self):
        if self._queue: raise ArithmeticError("two is three")
        return super().step()
return Rogue(config.options, placement)
""",
    )
    async with start_worker(backend="rogue") as worker:
        with pytest.raises(WorkerDied, match=r"(?s)status 1;.*ArithmeticError: two is three"):
            await ask(worker, chat("r", "hi"))


async def test_bytes_that_are_no_frame_end_the_worker(
    start_worker: StartWorker, site: Path, chat: Callable[..., ChatRequest]
) -> None:
    install_rogue(
        site,
        """
class Rogue(FakeEngine):
    def step(self):
        if self._queue: os.write(int(sys.argv[1]), bytes([255]) * 100)
        return super().step()
return Rogue(config.options, placement)
""",
    )
    async with start_worker(backend="rogue", hang_at="step") as worker:
        with pytest.raises(WorkerDied, match="sent what is no frame"):
            await ask(worker, chat("r", "hi"))


async def test_a_flood_of_output_does_not_block(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    n_chars = 0

    def count(line: str) -> None:
        nonlocal n_chars
        n_chars += len(line)

    async with start_worker(chatter_bytes=2**20, log=count) as worker:
        events = await ask(worker, chat("r", "say 20 words"))
        assert isinstance(events[-1], Finished)
    assert n_chars >= 20 * (2**20 - 1)
    assert worker.exit is not None
    assert len(worker.exit.stderr_tail) <= TAIL_BYTES


async def test_what_a_plugin_prints_is_logged(start_worker: StartWorker, site: Path) -> None:
    install_rogue(
        site,
        """
print("printed")
os.system("echo echoed")
return FakeEngine(config.options, placement)
""",
    )
    lines: list[str] = []
    async with start_worker(backend="rogue", log=lines.append):
        await wait_until_async(lambda: {"printed", "echoed"} <= set(lines))


async def test_the_worker_sees_the_allow_list_only(start_worker: StartWorker, site: Path) -> None:
    install_rogue(
        site,
        """
report.log(json.dumps(sorted(os.environ)))
return FakeEngine(config.options, placement)
""",
    )
    lines: list[str] = []
    async with start_worker(backend="rogue", log=lines.append):
        pass
    names = set(json.loads(lines[0]))
    assert {"PYTHONPATH", "RUNNER_HOME", "RUNNER_PLUGINS"} <= names
    assert not {name for name in names if name.startswith("PYTEST")}


async def test_programs_an_engine_starts_end_with_it(start_worker: StartWorker, site: Path) -> None:
    install_rogue(
        site,
        """
report.log(str(subprocess.Popen(["sleep", "600"]).pid))
return FakeEngine(config.options, placement)
""",
    )
    lines: list[str] = []
    async with start_worker(backend="rogue", log=lines.append) as worker:
        assert psutil.pid_exists(int(lines[0]))
        os.kill(worker.pid, signal.SIGKILL)
        await worker.wait_exited()
    await wait_until_async(partial(_is_gone, int(lines[0])))


# --- loads ----------------------------------------------------------------------------------


async def test_a_load_reports_its_progress(start_worker: StartWorker) -> None:
    seen: list[tuple[float, str]] = []
    lines: list[str] = []
    async with start_worker(load_s=0.6, progress=lambda *args: seen.append(args), log=lines.append):
        pass
    assert len(seen) >= 5
    assert seen == sorted(seen)
    assert seen[-1][0] == 1.0
    assert lines == ["loading test/fake"]


async def test_a_load_that_raises_is_told_in_its_own_words(start_worker: StartWorker) -> None:
    error = await error_of_load(start_worker, fail_load="no such tensor: output.weight")
    assert type(error) is WorkerStartFailed
    assert "RuntimeError: no such tensor: output.weight" in error.message
    assert "test/fake" in error.message
    assert "Traceback" in error.message or "runner_load_model" in error.message


async def test_an_error_the_backend_means_keeps_its_class(
    start_worker: StartWorker, site: Path
) -> None:
    install_rogue(site, 'raise UnsupportedOperation("not this model", param="model")')
    error = await error_of_load(start_worker, backend="rogue")
    assert type(error) is UnsupportedOperation
    assert (error.message, error.param) == ("not this model", "model")


async def test_death_while_loading_is_told_with_the_last_words(
    start_worker: StartWorker, site: Path
) -> None:
    install_rogue(site, 'print("the end is near"); os.abort()')
    error = await error_of_load(start_worker, backend="rogue")
    assert type(error) is WorkerStartFailed
    assert "SIGABRT" in error.message
    assert "the end is near" in error.message


async def test_a_load_without_sign_of_life_times_out(start_worker: StartWorker) -> None:
    error = await error_of_load(start_worker, hang_at="load", stall_s=1.0)
    assert type(error) is WorkerTimeout
    assert "no sign of progress for 1 s" in error.message


async def test_a_load_that_reports_may_take_longer_than_the_stall_limit(
    start_worker: StartWorker,
) -> None:
    async with start_worker(load_s=3.0, stall_s=1.5) as worker:
        assert worker.is_alive


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"backend": "nonesuch"}, "nonesuch"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"delay_s": "soon"}, "delay_s"),
        ({"version": "0.9"}, "restart the daemon"),
    ],
)
async def test_a_load_that_cannot_begin_says_why(
    start_worker: StartWorker, arguments: dict[str, Any], words: str
) -> None:
    error = await error_of_load(start_worker, **arguments)
    assert type(error) is WorkerStartFailed
    assert words in error.message


async def test_a_child_of_another_version_asks_for_a_restart(
    start_worker: StartWorker, site: Path
) -> None:
    (site / "sitecustomize.py").write_text('import runner\nrunner.__version__ = "99.0"\n')
    error = await error_of_load(start_worker)
    assert type(error) is WorkerStartFailed
    assert "99.0" in error.message
    assert "restart the daemon" in error.message


async def test_cancelling_a_load_leaves_no_process(start_worker: StartWorker) -> None:
    begun = anyio.Event()
    async with anyio.create_task_group() as tg:

        async def load() -> None:
            async with start_worker(hang_at="load", log=lambda line: begun.set()):
                pass

        tg.start_soon(load)
        await begun.wait()
        (child,) = psutil.Process().children()
        tg.cancel_scope.cancel()
    assert _is_gone(child.pid)


# --- ends -----------------------------------------------------------------------------------


async def test_stop_unloads_and_exits_in_good_order(start_worker: StartWorker) -> None:
    async with start_worker() as worker:
        await worker.stop()
        assert worker.exit is not None
        assert worker.exit.returncode == 0
        await worker.stop()


async def test_sigterm_is_an_orderly_stop(start_worker: StartWorker) -> None:
    async with start_worker() as worker:
        os.kill(worker.pid, signal.SIGTERM)
        await worker.wait_exited()
        assert worker.exit is not None
        assert worker.exit.returncode == 0


async def test_sigint_is_ignored(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with start_worker() as worker:
        os.kill(worker.pid, signal.SIGINT)
        assert text_of(await ask(worker, chat("r", "hi"))) == "Hello, world!"


async def test_a_hang_while_stopping_is_killed(start_worker: StartWorker) -> None:
    async with start_worker(hang_at="stop") as worker:
        await worker.stop(grace_s=0.3)
        assert worker.exit is not None
        assert worker.exit.signal == "SIGKILL"


async def test_cancelling_kills_a_worker_whose_engine_hangs(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with start_worker() as worker:
        with anyio.move_on_after(0.3):
            await ask(worker, chat("r", "hang"))
    assert worker.exit is not None
    assert worker.exit.signal == "SIGKILL"
    assert _is_gone(worker.pid)


async def test_no_descriptor_is_left_behind(start_worker: StartWorker) -> None:
    async with start_worker():
        pass
    before = psutil.Process().num_fds()
    for _ in range(3):
        async with start_worker():
            pass
    assert psutil.Process().num_fds() == before


PARENT = """
import sys, time
from functools import partial
import anyio
from runner.api import ChatRequest, Message, Placement
from runner.config import process_environment
from runner.testing.fake import fake_model
from runner.worker.process import run_worker
from runner.worker.spec import WorkerSpec

async def main():
    spec = WorkerSpec(
        backend="fake",
        model=fake_model(),
        placement=Placement(context_size=1000, kv_cells=1000, max_sequences=1),
    )
    run = partial(
        run_worker, spec, environment=process_environment(), stall_s=60, log=lambda line: None,
        progress=lambda fraction, note: None,
    )
    async with anyio.create_task_group() as tg:
        worker = await tg.start(run)
        request = ChatRequest(id="r", messages=(Message(role="user", content=sys.argv[1]),))
        async with worker.submit(request):
            print(worker.pid, flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.parametrize("prompt", ["hi", "hang"])
def test_a_worker_does_not_outlive_its_daemon(environment: dict[str, str], prompt: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, prompt], env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker_pid = int(parent.stdout.readline())
        assert psutil.pid_exists(worker_pid)
        parent.kill()
    wait_until(partial(_is_gone, worker_pid))


async def test_stats_follow_a_cancel(
    start_worker: StartWorker, chat: Callable[..., ChatRequest]
) -> None:
    async with start_worker() as worker:
        assert worker.stats == EngineStats(kv_cells=100_000)
        async with worker.submit(chat("r", "say 90000 words")) as stream:
            await anext(stream)
        await wait_until_async(lambda: (worker.stats.active, worker.stats.kv_used) == (0, 0))


def _is_gone(pid: int) -> bool:
    try:
        # Where nobody reaps orphans, a zombie is as gone as it gets.
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
