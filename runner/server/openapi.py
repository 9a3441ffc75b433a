"""The OpenAPI document, made from the routes and the Structs they declare.

A handler names the Structs of its body and its answer in ``opt``. It decodes the body itself, so
that errors name their field in OpenAI's form; msgspec writes the schemas, ranges included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar.routes import HTTPRoute

from runner.openai.errors import ErrorAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from litestar.handlers import HTTPRouteHandler
    from litestar.routes import BaseRoute

__all__ = ["openapi_document"]

_REF = "#/components/schemas/{name}"
_ERROR = "default"


def openapi_document(routes: Iterable[BaseRoute], *, version: str) -> dict[str, Any]:
    """The document for all routes that are to be seen."""
    shown = [
        (route, handler, method)
        for route in routes
        if isinstance(route, HTTPRoute)
        for handler in route.route_handlers
        if handler.resolve_include_in_schema()
        for method in sorted(handler.http_methods)
        if method != "OPTIONS"
    ]
    types = [ErrorAnswer]
    for _, handler, _ in shown:
        types += [handler.opt[key] for key in ("body", "answer") if key in handler.opt]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    # Types are not all hashable; their place in the list names them.
    by_type = [(kind, schema) for kind, schema in zip(types, schemas, strict=True)]
    paths: dict[str, dict[str, Any]] = {}
    for route, handler, method in sorted(shown, key=lambda entry: entry[0].path_format):
        operation = _operation(route, handler, by_type)
        operation["operationId"] = _operation_id(method, route.path_format)
        paths.setdefault(route.path_format, {})[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Runner", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"apiKey": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"apiKey": []}],
    }


def _operation(
    route: HTTPRoute, handler: HTTPRouteHandler, by_type: list[tuple[Any, dict[str, Any]]]
) -> dict[str, Any]:
    def schema(kind: Any) -> dict[str, Any]:
        return next(found for known, found in by_type if known == kind)

    answer: dict[str, Any] = {"description": "Success"}
    if (kind := handler.opt.get("answer")) is not None:
        answer["content"] = {"application/json": {"schema": schema(kind)}}
        if handler.opt.get("streams"):
            answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    operation: dict[str, Any] = {
        "summary": handler.summary,
        "responses": {
            "200": answer,
            _ERROR: {
                "description": "An error",
                "content": {"application/json": {"schema": schema(ErrorAnswer)}},
            },
        },
    }
    if (kind := handler.opt.get("body")) is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema(kind)}},
        }
    if route.path_parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.path_parameters
        ]
    return operation


def _operation_id(method: str, path: str) -> str:
    words = path.replace("{", "").replace("}", "").replace(".", "_").strip("/").split("/")
    return "_".join([method.lower(), *words])
