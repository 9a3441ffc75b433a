"""The application: Litestar with the routes, inside the middleware."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import Litestar
from litestar.datastructures import State

from runner.server.errors import exception_handlers
from runner.server.prefix import PathPrefix
from runner.server.request_log import RequestLog
from runner.server.routes import all_routes
from runner.server.security import Security

if TYPE_CHECKING:
    from litestar.types import ASGIApp

    from runner.server.services import Services

__all__ = ["create_app"]


def create_app(services: Services) -> ASGIApp:
    """The ASGI application that serves these services.

    The middleware stands around Litestar rather than in it, because Litestar's own does not run
    for paths and methods that have no route.
    """
    limit = services.settings.body_limit_bytes
    app: ASGIApp = Litestar(
        route_handlers=all_routes(),
        exception_handlers=exception_handlers(body_limit_bytes=limit),
        request_max_body_size=limit,
        openapi_config=None,
        logging_config=None,
        state=State({"services": services}),
    )
    return RequestLog(Security(PathPrefix(app), services.settings))
