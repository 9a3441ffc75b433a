"""The OpenAI API: chat, completions, embeddings, models.

Each route exists as ``/v1/…``, ``/engines/v1/…`` and ``/engines/{backend}/v1/…``.
"""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
import msgspec
from litestar import Request, Response, get, post
from litestar.params import FromPath

from runner.openai.body import decode_body, decode_struct
from runner.openai.chat import ChatAnswer, ChatBody, ChatCollector, ChatStream, chat_request
from runner.openai.completions import (
    CompletionAnswer,
    CompletionBody,
    CompletionCollector,
    CompletionStream,
    completion_request,
)
from runner.openai.embeddings import (
    EmbeddingBody,
    EmbeddingCollector,
    EmbeddingList,
    embedding_request,
)
from runner.openai.generation import AnswerInfo
from runner.openai.models import ModelInfo, ModelList
from runner.openai.parameters import CHAT, COMPLETION, EMBEDDING, Rules, ignored_header
from runner.server.context import header
from runner.server.disconnect import read_body, unless_disconnected
from runner.server.generation import (
    Job,
    Plan,
    client_of,
    keep_alive_seconds,
    perform,
    plan,
    preload,
)
from runner.server.listing import model_info
from runner.server.services import services_of
from runner.server.streaming import AppResponse, EventStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runner.api.backend import Mode
    from runner.api.events import Event
    from runner.api.requests import EngineRequest
    from runner.openai.generation import Collector, StreamEncoder

__all__ = ["ROUTES"]

B = TypeVar("B", ChatBody, CompletionBody, EmbeddingBody)


def _paths(path: str) -> list[str]:
    return [f"/v1/{path}", f"/engines/v1/{path}", f"/engines/{{backend:str}}/v1/{path}"]


class _ModelOnly(msgspec.Struct, frozen=True, kw_only=True):
    """What a preload looks at."""

    model: str = ""
    keep_alive: str | float | None = None


class _Exchange:
    """What the handlers of generating routes have in common."""

    def __init__(self, request: Request[Any, Any, Any], backend: str | None, mode: Mode) -> None:
        self.request = request
        self.services = services_of(request)
        if backend is not None:
            # An unknown backend is a 404 whatever the body says.
            self.services.plugins.backend(backend)
        self.backend = backend
        self.mode = mode

    async def read(self, kind: type[B], rules: Rules) -> tuple[B, dict[str, str]]:
        """The body, and the response headers that its parameters give rise to."""
        body, unknown = decode_body(await read_body(self.request), kind, rules)
        return body, {"x-runner-ignored": ignored_header(unknown)} if unknown else {}

    async def plan(self, reference: str) -> Plan:
        """Model and backend."""
        return await plan(self.services, reference=reference, named=self.backend, mode=self.mode)

    def info(self, prefix: str, body: ChatBody | CompletionBody, planned: Plan) -> AnswerInfo:
        """What every chunk repeats."""
        return AnswerInfo(
            id=_new_id(prefix),
            created=int(time.time()),
            model=body.model,
            system_fingerprint=planned.fingerprint,
        )

    def job(self, planned: Plan, request: EngineRequest, body: B) -> Job:
        """The work to be done."""
        return Job(
            spec=planned.spec,
            request=request,
            client=client_of(self.request.scope, body.user),
            keep_alive_s=keep_alive_seconds(body.keep_alive),
        )

    async def collect(
        self, job: Job, collector: Collector, headers: Mapping[str, str]
    ) -> Response[bytes]:
        """The whole answer; a client that leaves cancels it."""

        async def sink(events: list[Event]) -> None:
            collector.add(events)

        work = partial(perform, self.services, job, sink)
        await unless_disconnected(self.request.receive, work)
        return _json(collector.answer(), headers)

    def stream(
        self, job: Job, encoder: StreamEncoder, headers: Mapping[str, str]
    ) -> Response[None]:
        """The answer as it is made."""
        return AppResponse(EventStream(self.services, job, encoder, headers))

    async def preload(self) -> Response[bytes]:
        """Load the model only, as ``X-Preload-Only: true`` asks."""
        body = decode_struct(await read_body(self.request), _ModelOnly)
        planned = await self.plan(body.model)
        client = client_of(self.request.scope, None)
        keep_alive_s = keep_alive_seconds(body.keep_alive)
        work = partial(
            preload, self.services, planned.spec, client=client, keep_alive_s=keep_alive_s
        )
        await unless_disconnected(self.request.receive, work)
        return Response(b"", media_type="text/plain")

    @property
    def is_preload(self) -> bool:
        """Whether only the load is wanted."""
        return header(self.request.scope, b"x-preload-only") == b"true"


@post(
    _paths("chat/completions"),
    status_code=200,
    summary="Continue a chat",
    opt={"body": ChatBody, "answer": ChatAnswer, "streams": True},
)
async def chat_completions(
    request: Request[Any, Any, Any], backend: FromPath[str | None] = None
) -> Response[Any]:
    """Answer a chat with the model's own template."""
    exchange = _Exchange(request, backend, "chat")
    if exchange.is_preload:
        return await exchange.preload()
    body, headers = await exchange.read(ChatBody, CHAT)
    draft = chat_request(body, "")
    planned = await exchange.plan(body.model)
    info = exchange.info("chatcmpl", body, planned)
    job = exchange.job(planned, msgspec.structs.replace(draft, id=info.id), body)
    if body.wants_stream:
        return exchange.stream(job, ChatStream(info, body), headers)
    return await exchange.collect(job, ChatCollector(info, body), headers)


@post(
    _paths("completions"),
    status_code=200,
    summary="Continue a text",
    opt={"body": CompletionBody, "answer": CompletionAnswer, "streams": True},
)
async def completions(
    request: Request[Any, Any, Any], backend: FromPath[str | None] = None
) -> Response[Any]:
    """Continue a text as it stands, without a template."""
    exchange = _Exchange(request, backend, "completion")
    if exchange.is_preload:
        return await exchange.preload()
    body, headers = await exchange.read(CompletionBody, COMPLETION)
    draft = completion_request(body, "")
    planned = await exchange.plan(body.model)
    info = exchange.info("cmpl", body, planned)
    job = exchange.job(planned, msgspec.structs.replace(draft, id=info.id), body)
    if body.wants_stream:
        return exchange.stream(job, CompletionStream(info, body), headers)
    n_choices = len(draft.prompts) * draft.generation.n
    collector = CompletionCollector(info, body, n_choices=n_choices)
    return await exchange.collect(job, collector, headers)


@post(
    _paths("embeddings"),
    status_code=200,
    summary="Embed texts",
    opt={"body": EmbeddingBody, "answer": EmbeddingList},
)
async def embeddings(
    request: Request[Any, Any, Any], backend: FromPath[str | None] = None
) -> Response[Any]:
    """Turn texts into one L2-normalised vector each."""
    exchange = _Exchange(request, backend, "embedding")
    if exchange.is_preload:
        return await exchange.preload()
    body, headers = await exchange.read(EmbeddingBody, EMBEDDING)
    work = embedding_request(body, _new_id("embd"))
    planned = await exchange.plan(body.model)
    return await exchange.collect(
        exchange.job(planned, work, body), EmbeddingCollector(body), headers
    )


@get(_paths("models"), summary="List the models", opt={"answer": ModelList})
async def list_models(
    request: Request[Any, Any, Any], backend: FromPath[str | None] = None
) -> Response[Any]:
    """All models in the store, and those that local sources offer."""
    services = services_of(request)
    if backend is not None:
        services.plugins.backend(backend)
    return Response(await services.listings.openai(), media_type="application/json")


@get(_paths("models/{ref:path}"), summary="One model", opt={"answer": ModelInfo})
async def one_model(
    request: Request[Any, Any, Any], ref: FromPath[str], backend: FromPath[str | None] = None
) -> Response[Any]:
    """One model by name, tag or digest."""
    services = services_of(request)
    if backend is not None:
        services.plugins.backend(backend)
    resolve: Callable[[str], Any] = services.store.resolve
    return _json(model_info(await anyio.to_thread.run_sync(resolve, ref.lstrip("/"))))


def _new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def _json(answer: object, headers: Mapping[str, str] | None = None) -> Response[bytes]:
    return Response(
        msgspec.json.encode(answer), media_type="application/json", headers=dict(headers or {})
    )


ROUTES = [chat_completions, completions, embeddings, list_models, one_model]
