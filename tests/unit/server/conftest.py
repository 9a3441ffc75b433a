"""The application over fakes of everything behind it: store, scheduler, backends, sources."""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import anyio
import httpx
import msgspec
import pytest

from runner.api.backend import BackendInfo
from runner.api.errors import BackendNotFound, ModelNotFound, ShuttingDown
from runner.api.events import (
    ChoiceFinished,
    Delta,
    EmbeddingVector,
    Event,
    Finished,
    Started,
    Timings,
    Usage,
)
from runner.api.model import Model, ModelHeader
from runner.api.requests import CompletionRequest, EmbeddingRequest, EngineRequest
from runner.scheduler.backends import BackendStatus
from runner.server.app import create_app
from runner.server.listeners import base_url, open_tcp, open_unix
from runner.server.serve import run_server
from runner.server.services import Services
from runner.store import ModelConfig, Removal, StoredModel
from runner.testing.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from litestar.types import ASGIApp

    from runner.config import Settings

    Engine = Callable[[EngineRequest], AsyncIterator[list[Event]]]

MODEL_ID = "sha256:" + "a" * 64
HEADER = ModelHeader(
    format="gguf", version=3, architecture="llama", metadata={}, tensors=(), file_bytes=0
)


async def polite_engine(request: EngineRequest) -> AsyncIterator[list[Event]]:
    """Answers everything at once."""
    if isinstance(request, EmbeddingRequest):
        yield [
            EmbeddingVector(request_id=request.id, index=i, vector=b"\x00\x00\x80\x3f" * 2)
            for i in range(len(request.inputs))
        ]
        yield [Finished(request_id=request.id, usage=Usage(n_prompt=5))]
        return
    n_prompts = len(request.prompts) if isinstance(request, CompletionRequest) else 1
    n = n_prompts * request.generation.n
    yield [Started(request_id=request.id, n_prompt=5, n_cached=2)]
    for text in ("Hello", " wörld"):
        yield [Delta(request_id=request.id, index=i, text=text) for i in range(n)]
    yield [
        *(ChoiceFinished(request_id=request.id, index=i, reason="stop") for i in range(n)),
        Finished(
            request_id=request.id,
            usage=Usage(n_prompt=5, n_completion=2 * n, n_cached=2),
            timings=Timings(queue_s=0.001, prefill_s=0.01, decode_s=0.02),
        ),
    ]


class FakeScheduler:
    def __init__(self) -> None:
        self.engine: Engine = polite_engine
        self.note = "loading 40 %"
        self.drain_s = 10.0
        self.ready = anyio.Event()
        self.ready.set()
        self.error: Exception | None = None
        self.leases: list[dict[str, Any]] = []
        self.requests: list[EngineRequest] = []
        #: How many leases are held now.
        self.n_held = 0
        self.n_cancelled = 0
        self.unloaded: list[dict[str, Any]] = []
        self.workers: tuple[Any, ...] = ()
        self.used: set[str] = set()

    @asynccontextmanager
    async def lease(self, spec: Any, **policy: Any) -> AsyncIterator[FakeScheduler]:
        self.leases.append({"spec": spec, **policy})
        self.n_held += 1
        try:
            yield self
        finally:
            self.n_held -= 1

    async def worker(self) -> FakeScheduler:
        await self.ready.wait()
        if self.error is not None:
            raise self.error
        return self

    @asynccontextmanager
    async def submit(self, request: EngineRequest) -> AsyncIterator[AsyncIterator[list[Event]]]:
        self.requests.append(request)
        try:
            yield self.engine(request)
        except anyio.get_cancelled_exc_class():
            self.n_cancelled += 1
            raise

    async def in_use(self, model_id: str) -> bool:
        return model_id in self.used

    async def status(self) -> tuple[Any, ...]:
        return self.workers

    async def drain(self) -> None:
        with anyio.move_on_after(self.drain_s):
            await wait_until_async(lambda: self.n_held == 0, 60)
        self.error = ShuttingDown("the daemon is stopping")
        self.ready.set()

    async def unload(self, **which: Any) -> int:
        self.unloaded.append(which)
        return 1


class FakeStore:
    def __init__(self) -> None:
        config = ModelConfig(format="gguf", architecture="llama", size="10MiB", context_size=2048)
        self.models: tuple[StoredModel, ...] = (
            StoredModel(
                id=MODEL_ID,
                tags=("docker.io/ai/tiny:latest",),
                created=1700000000,
                config=config,
                is_local=False,
                size_bytes=10,
            ),
        )
        self.add: Callable[..., StoredModel] = lambda *_args, **_named: self.models[0]

    def snapshot(self) -> tuple[StoredModel, ...]:
        return self.models

    def resolve(self, reference: str, *, allow_partial: bool = False) -> StoredModel:
        known = ["ai/tiny", "ai/tiny:latest", "docker.io/ai/tiny:latest", MODEL_ID]
        if reference in [*known, f"ai/tiny@{MODEL_ID}"] or (allow_partial and reference == "tiny"):
            return self.models[0]
        raise ModelNotFound(reference)

    def load(self, stored: StoredModel) -> Model:
        return Model(id=stored.id, name=stored.name, header=HEADER)

    def remove(self, reference: str, *, force: bool = False) -> list[Removal]:
        return [Removal(untagged=reference), Removal(deleted=MODEL_ID)]


class FakeBackend:
    info = BackendInfo(name="parrot", description="Repeats", aliases=("polly",), formats=("gguf",))
    distribution = "parrot"
    version = "1.2"


class FakePlugins:
    rows = ()

    def __init__(self) -> None:
        self.sources: tuple[Any, ...] = ()
        self.backends = {"parrot": FakeBackend()}

    def backend(self, name: str) -> FakeBackend:
        if name not in ("parrot", "polly"):
            raise BackendNotFound(name, known=("parrot",))
        return FakeBackend()


class FakeCatalog:
    async def describe(self) -> tuple[BackendStatus, ...]:
        return (
            BackendStatus(
                name="parrot",
                description="Repeats",
                aliases=(),
                distribution="parrot",
                version="1.2",
                engine="libparrot 3",
                build="",
                formats=("gguf",),
                modes=("chat",),
                rank=1,
                is_supported=True,
                devices=("cpu",),
                reason="",
                is_default=True,
            ),
        )

    async def select(self, *_args: Any, **_named: Any) -> FakeBackend:
        return FakeBackend()


class Harness:
    """The application, its fakes, and ways to talk to it."""

    def __init__(self, settings: Settings) -> None:
        self.scheduler = FakeScheduler()
        self.store = FakeStore()
        self.plugins = FakePlugins()
        self.settings = settings

    @property
    def app(self) -> ASGIApp:
        services = Services(
            settings=self.settings,
            plugins=cast("Any", self.plugins),
            catalog=cast("Any", FakeCatalog()),
            store=cast("Any", self.store),
            scheduler=cast("Any", self.scheduler),
        )
        return create_app(services)

    def set(self, **changes: Any) -> None:
        self.settings = msgspec.structs.replace(self.settings, **changes)

    def client(self, *, over_socket: bool = False) -> httpx.AsyncClient:
        """In memory, as if over TCP, or over the Unix socket."""
        app = self.app

        async def marked(scope: Any, receive: Any, send: Any) -> None:
            if over_socket:
                scope["server"] = ("/run/runner.sock", None)
            await app(scope, receive, send)

        transport = httpx.ASGITransport(cast("Any", marked))
        return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:12434")

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[tuple[httpx.AsyncClient, httpx.AsyncClient]]:
        """Clients over TCP and over the socket of a real server, stopped by a signal at the end."""
        unix = open_unix(self.settings.socket_path)
        tcp = open_tcp("127.0.0.1", 0)
        started = anyio.Event()
        uds = str(self.settings.socket_path)
        async with (
            anyio.create_task_group() as tasks,
            httpx.AsyncClient(base_url=base_url(tcp[0]), trust_env=False, timeout=10) as over_tcp,
            httpx.AsyncClient(
                base_url="http://socket", transport=httpx.AsyncHTTPTransport(uds=uds), timeout=10
            ) as over_socket,
        ):
            tasks.start_soon(self._serve, [unix, *tcp], started)
            await started.wait()
            try:
                yield over_tcp, over_socket
            finally:
                await over_tcp.aclose()
                await over_socket.aclose()
                os.kill(os.getpid(), signal.SIGTERM)

    async def _serve(self, sockets: list[Any], started: anyio.Event) -> None:
        await run_server(
            self.app,
            sockets,
            drain=self.scheduler.drain,
            drain_s=self.settings.drain_s,
            on_ready=started.set,
        )


@pytest.fixture
def harness(settings: Settings, tmp_path: Path) -> Harness:
    return Harness(msgspec.structs.replace(settings, socket_path=tmp_path / "r.sock", drain_s=1.0))
