"""The routes, by what they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.server.routes import engines, misc, models, openai

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

__all__ = ["all_routes"]


def all_routes() -> list[HTTPRouteHandler]:
    """Every route of the daemon."""
    return [*openai.ROUTES, *models.ROUTES, *engines.ROUTES, *misc.ROUTES]
