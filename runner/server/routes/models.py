"""Docker Model Runner's API for the models in the store."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
import msgspec
from litestar import Request, Response, delete, get, post
from litestar.params import FromPath

from runner.api.errors import ModelInUse, RequestError, UnsupportedOperation
from runner.openai.body import decode_struct
from runner.server.disconnect import read_body
from runner.server.listing import ModelObject, model_object
from runner.server.pulling import PullBody, PullLine, PullStream
from runner.server.services import services_of
from runner.server.streaming import AppResponse

__all__ = ["ROUTES"]

_TRUE = {"1", "t", "true", ""}


@get("/models", summary="List the stored models", opt={"answer": list[ModelObject]})
async def list_stored(request: Request[Any, Any, Any]) -> Response[bytes]:
    """All models with their config, in Docker Model Runner's form."""
    return Response(await services_of(request).listings.docker(), media_type="application/json")


@get("/models/{ref:path}", summary="One stored model", opt={"answer": ModelObject})
async def inspect_stored(request: Request[Any, Any, Any], ref: FromPath[str]) -> Response[bytes]:
    """One model by name, by the last part of its name, or by digest."""
    if _is_true(request, "remote"):
        raise UnsupportedOperation(
            "looking at models in a registry is not supported yet by this version of Runner",
            param="remote",
        )
    store = services_of(request).store
    stored = await anyio.to_thread.run_sync(
        lambda: store.resolve(_reference(ref), allow_partial=True)
    )
    return Response(msgspec.json.encode(model_object(stored)), media_type="application/json")


@post(
    "/models/create",
    status_code=200,
    summary="Pull a model",
    opt={"body": PullBody, "answer": PullLine},
)
async def create(request: Request[Any, Any, Any]) -> Response[Any]:
    """Bring a model into the store; progress comes as one JSON object per line."""
    body = decode_struct(await read_body(request), PullBody)
    if not body.source.strip():
        raise RequestError("Invalid model reference: from is required", param="from")
    return AppResponse(PullStream(services_of(request), body.source.strip()))


@delete("/models/{ref:path}", status_code=200, summary="Remove a model")
async def remove(request: Request[Any, Any, Any], ref: FromPath[str]) -> Response[bytes]:
    """Take a name off a model; with its last name the model goes too.

    A model that is answering is removed only with ``force=true``, which also unloads it.
    """
    services = services_of(request)
    reference, is_forced = _reference(ref), _is_true(request, "force")
    stored = await anyio.to_thread.run_sync(services.store.resolve, reference)
    if not is_forced and await services.scheduler.in_use(stored.id):
        raise ModelInUse(
            f'"{stored.name}" is in use: wait for its requests to end, or remove it with force=true'
        )
    removals = await anyio.to_thread.run_sync(
        lambda: services.store.remove(reference, force=is_forced)
    )
    if any(removal.deleted for removal in removals):
        await services.scheduler.unload(model_ids=[stored.id])
    return Response(msgspec.json.encode(removals), media_type="application/json")


def _reference(path: str) -> str:
    return path.removeprefix("/")


def _is_true(request: Request[Any, Any, Any], name: str) -> bool:
    value = request.query_params.get(name)
    return value is not None and value.lower() in _TRUE


ROUTES = [list_stored, inspect_stored, create, remove]
