from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api import (
    ChoiceFinished,
    ConflictError,
    Delta,
    EmbeddingRequest,
    EngineStats,
    Failed,
    Finished,
    RequestError,
    Started,
    TokenLogprob,
    Usage,
    WorkerDied,
)
from runner.worker.codec import daemon_frames
from runner.worker.frames import Cancel, Events, Submit
from runner.worker.worker import Worker, WorkerExit

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.api import ChatRequest, Event

pytestmark = pytest.mark.anyio

FINISHED = Finished(request_id="r", usage=Usage(n_prompt=1))


class Sent:
    """Collects what a worker's handle sends."""

    def __init__(self) -> None:
        self.data = b""

    def __call__(self, data: bytes) -> None:
        self.data += data

    @property
    def frames(self) -> list[object]:
        return daemon_frames().feed(self.data)


def make_worker(sent: Sent) -> Worker:
    return Worker(pid=1, name="test/fake", send=sent)


def deliver(worker: Worker, *events: Event) -> None:
    worker.deliver(Events(events=list(events), stats=EngineStats()))


def delta(text: str, index: int = 0, *, logprobs: tuple[TokenLogprob, ...] = ()) -> Delta:
    return Delta(request_id="r", index=index, text=text, logprobs=logprobs)


async def test_unread_text_of_one_choice_is_merged(chat: Callable[..., ChatRequest]) -> None:
    worker = make_worker(Sent())
    async with worker.submit(chat("r", "hi")) as stream:
        first, second = (TokenLogprob(name, name.encode(), -1.0) for name in "ab")
        deliver(worker, Started(request_id="r", n_prompt=1), delta("a", logprobs=(first,)))
        deliver(worker, delta("x", 1))
        deliver(worker, delta("b", logprobs=(second,)), delta("y", 1))
        deliver(worker, ChoiceFinished(request_id="r", index=0, reason="stop"), FINISHED)
        assert [events async for events in stream] == [
            [
                Started(request_id="r", n_prompt=1),
                delta("ab", logprobs=(first, second)),
                delta("xy", 1),
                ChoiceFinished(request_id="r", index=0, reason="stop"),
                FINISHED,
            ]
        ]


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=3), st.booleans()), max_size=30))
def test_no_text_is_lost_however_slowly_it_is_read(script: list[tuple[int, str, bool]]) -> None:
    async def run() -> None:
        worker = make_worker(Sent())
        said = dict.fromkeys(range(3), "")
        read = dict.fromkeys(range(3), "")
        async with worker.submit(EmbeddingRequest(id="r", inputs=())) as stream:
            for index, text, is_read in [*script, (0, "", True)]:
                deliver(worker, delta(text, index))
                said[index] += text
                if is_read:
                    events = await anext(stream)
                    assert len(events) <= 3
                    for event in events:
                        assert isinstance(event, Delta)
                        read[event.index] += event.text
            deliver(worker, FINISHED)
            assert [events async for events in stream] == [[FINISHED]]
        assert read == said

    anyio.run(run)


async def test_a_failure_is_raised_after_what_came_before(
    chat: Callable[..., ChatRequest],
) -> None:
    sent = Sent()
    worker = make_worker(sent)
    async with worker.submit(chat("r", "hi")) as stream:
        failed = Failed(request_id="r", code="invalid_request", message="no", param="messages")
        deliver(worker, delta("a"), failed)
        assert await anext(stream) == [delta("a")]
        with pytest.raises(RequestError, match="no") as caught:
            await anext(stream)
        assert caught.value.param == "messages"
    assert not any(isinstance(frame, Cancel) for frame in sent.frames)


async def test_a_reader_that_waits_is_woken(chat: Callable[..., ChatRequest]) -> None:
    worker = make_worker(Sent())
    got: list[list[Event]] = []
    async with worker.submit(chat("r", "hi")) as stream, anyio.create_task_group() as tg:

        async def read() -> None:
            got.extend([events async for events in stream])

        tg.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        deliver(worker, delta("a"))
        await anyio.wait_all_tasks_blocked()
        deliver(worker, FINISHED)
    assert got == [[delta("a")], [FINISHED]]


async def test_leaving_early_sends_a_cancel_and_finishing_does_not(
    chat: Callable[..., ChatRequest],
) -> None:
    sent = Sent()
    worker = make_worker(sent)
    async with worker.submit(chat("left", "hi")):
        pass
    async with worker.submit(chat("r", "hi")):
        deliver(worker, FINISHED)
    assert sent.frames == [
        Submit(request=chat("left", "hi")),
        Cancel(request_id="left"),
        Submit(request=chat("r", "hi")),
    ]


async def test_events_of_a_request_that_was_left_are_dropped(
    chat: Callable[..., ChatRequest],
) -> None:
    worker = make_worker(Sent())
    async with worker.submit(chat("r", "hi")):
        pass
    deliver(worker, delta("late"), FINISHED)


async def test_a_request_id_in_use_is_refused(chat: Callable[..., ChatRequest]) -> None:
    worker = make_worker(Sent())
    async with worker.submit(chat("r", "one")) as stream:
        with pytest.raises(ConflictError, match="r is in use"):
            await worker.submit(chat("r", "two")).__aenter__()
        deliver(worker, FINISHED)
        assert [events async for events in stream] == [[FINISHED]]
    async with worker.submit(chat("r", "again")):
        deliver(worker, FINISHED)


async def test_death_fails_every_stream_with_exit_and_last_words(
    chat: Callable[..., ChatRequest],
) -> None:
    worker = make_worker(Sent())
    async with worker.submit(chat("r", "hi")) as stream, worker.submit(chat("s", "hi")) as other:
        deliver(worker, delta("a"))
        worker.end(WorkerExit(returncode=-11, signal="SIGSEGV", stderr_tail="segfault at 0"))
        assert await anext(stream) == [delta("a")]
        for each in (stream, other):
            with pytest.raises(WorkerDied, match=r"(?s)test/fake was killed by SIGSEGV.*at 0"):
                await anext(each)
    assert not worker.is_alive
    with pytest.raises(WorkerDied):
        await worker.submit(chat("t", "hi")).__aenter__()


async def test_a_worker_that_says_bye_takes_no_requests(chat: Callable[..., ChatRequest]) -> None:
    worker = make_worker(Sent())
    worker.leave()
    assert not worker.is_alive
    with pytest.raises(WorkerDied, match="is stopping"):
        await worker.submit(chat("r", "hi")).__aenter__()


async def test_a_request_that_cannot_be_encoded_is_a_request_error(
    chat: Callable[..., ChatRequest],
) -> None:
    worker = make_worker(Sent())
    with pytest.raises(RequestError, match="cannot be passed"):
        await worker.submit(chat("r", "\ud800")).__aenter__()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (WorkerExit(returncode=1), "exited with status 1"),
        (WorkerExit(returncode=-9, signal="SIGKILL"), "killed by SIGKILL (perhaps the system ran"),
        (WorkerExit(returncode=-9, signal="SIGKILL", cause="stuck"), "killed by SIGKILL (stuck)"),
        (WorkerExit(returncode=-4, signal="SIGILL"), "instructions that this CPU lacks"),
        (WorkerExit(returncode=2, stderr_tail="a\nb"), "of its output:\na\nb"),
    ],
)
async def test_an_exit_describes_itself(how: WorkerExit, words: str) -> None:
    assert words in how.describe()
