"""Is it there, which version, what does it offer, what has it logged."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from litestar import HttpMethod, Request, Response, get, route

from runner.api.errors import ForbiddenError, NotFoundError, RequestError
from runner.server.context import is_local_socket
from runner.server.log_view import LogView
from runner.server.openapi import openapi_document
from runner.server.services import services_of
from runner.server.streaming import AppResponse

__all__ = ["ROUTES"]

_ANY = [HttpMethod.GET, HttpMethod.HEAD, HttpMethod.POST, HttpMethod.PUT, HttpMethod.DELETE]
_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


@route("/", http_method=_ANY, status_code=200, include_in_schema=False)
async def root() -> Response[str]:
    """Tell that the daemon is there."""
    return Response("Runner is running", media_type="text/plain")


@route("/version", http_method=_ANY, status_code=200, include_in_schema=False)
async def version(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The daemon's version and process."""
    answer = {"version": services_of(request).version, "pid": os.getpid()}
    return Response(msgspec.json.encode(answer), media_type="application/json")


@get("/openapi.json", include_in_schema=False)
async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    """The API's description."""
    document = openapi_document(request.app.routes, version=services_of(request).version)
    return Response(msgspec.json.encode(document), media_type="application/json")


@get("/logs", summary="What the daemon and its engines have logged")
async def logs(request: Request[Any, Any, Any]) -> Response[Any]:
    """Both logs by time; ``follow=true`` goes on, ``no-engines=true`` leaves the engines out."""
    settings = services_of(request).settings
    if not is_local_socket(request.scope) and settings.api_key is None:
        raise ForbiddenError("logs are shown over the Unix socket, or to clients with an API key")
    is_following, without_engines = _flag(request, "follow"), _flag(request, "no-engines")
    names = ["runner.log"] if without_engines else ["runner.log", "engine.log"]
    if not (settings.log_dir / names[0]).exists():
        raise NotFoundError(f"service log not found in {settings.log_dir}")
    view = LogView([settings.log_dir / name for name in names], is_following=is_following)
    return AppResponse(view)


def _flag(request: Request[Any, Any, Any], name: str) -> bool:
    value = request.query_params.get(name)
    if value is None or value == "":
        return False
    if (flag := _BOOLEANS.get(value.lower())) is None:
        raise RequestError(
            f'invalid {name} parameter: "{value}" is not a valid boolean', param=name
        )
    return flag


ROUTES = [root, version, openapi, logs]
