"""Real worker processes with the fake backend."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import psutil
import pytest

from runner.api import ChatRequest, Message, Placement
from runner.config import process_environment
from runner.testing.distribution import install_fake
from runner.testing.fake import fake_model
from runner.worker.environment import worker_environment
from runner.worker.process import run_worker
from runner.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from runner.worker.worker import Worker

PLACEMENT = Placement(context_size=100_000, kv_cells=100_000, max_sequences=8)


class StartWorker(Protocol):
    """Starts a worker; stops it at the end of the block."""

    def __call__(
        self,
        *,
        backend: str = "fake",
        version: str = "",
        stall_s: float = 60,
        log: Callable[[str], None] = ...,
        progress: Callable[[float, str], None] = ...,
        **options: Any,
    ) -> AbstractAsyncContextManager[Worker]: ...


def chat(request_id: str, prompt: str) -> ChatRequest:
    """A chat of one message."""
    return ChatRequest(id=request_id, messages=(Message(role="user", content=prompt),))


@pytest.fixture(name="chat")
def _chat() -> Callable[[str, str], ChatRequest]:
    return chat


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory on the workers' path, with the fake installed in it."""
    path = tmp_path / "site"
    install_fake(path)
    return path


@pytest.fixture
def environment(site: Path, tmp_path: Path) -> dict[str, str]:
    """What workers see: the allow-list, a home of their own, and no other plugins."""
    own = {
        "PYTHONPATH": str(site),
        "RUNNER_HOME": str(tmp_path / "home"),
        "RUNNER_PLUGINS": "fake,rogue",
    }
    return worker_environment((), process_environment() | own)


@pytest.fixture
def start_worker(environment: dict[str, str]) -> StartWorker:
    @asynccontextmanager
    async def start(
        *,
        backend: str = "fake",
        version: str = "",
        stall_s: float = 60,
        log: Callable[[str], None] = lambda line: None,
        progress: Callable[[float, str], None] = lambda fraction, note: None,
        **options: Any,
    ) -> AsyncIterator[Worker]:
        spec = WorkerSpec(
            backend=backend,
            model=fake_model(),
            options=options,
            placement=PLACEMENT,
            backend_version=version,
        )
        run = partial(
            run_worker, spec, environment=environment, stall_s=stall_s, log=log, progress=progress
        )
        async with anyio.create_task_group() as tg:
            worker = await tg.start(run)
            try:
                yield worker
            finally:
                tg.cancel_scope.cancel()

    return start


@pytest.fixture(autouse=True)
def _no_process_and_no_descriptor_is_left() -> Iterator[None]:
    process = psutil.Process()
    before = process.num_fds()
    yield
    assert process.children(recursive=True) == []
    # The event loop of the session may open a few of its own on first use.
    assert process.num_fds() <= before + 4
