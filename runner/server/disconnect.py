"""Work that ends when its client leaves."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from litestar.exceptions import InternalServerException

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from litestar import Request
    from litestar.types import Receive

__all__ = [
    "ClientDisconnected",
    "cancel_on_disconnect",
    "read_body",
    "unless_disconnected",
    "unwrapped",
]

T = TypeVar("T")


class ClientDisconnected(Exception):
    """The client has left; there is nobody to answer."""


@contextmanager
def unwrapped() -> Iterator[None]:
    """Put around a task group: the one error of a child comes out as itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        exc: BaseException = group
        while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        if exc is group:
            raise
        raise exc from exc.__cause__


async def cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    """Wait for the client to leave, then cancel. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def read_body(request: Request[Any, Any, Any]) -> bytes:
    """The whole body, which the application's limit bounds.

    :raises ClientDisconnected: the client left before it was complete.
    """
    try:
        return await request.body()
    except InternalServerException as exc:
        # Litestar's word for a body that ends too early; nothing else in there raises it.
        raise ClientDisconnected from exc


async def unless_disconnected(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """The result of ``work``, which is cancelled at once when the client leaves.

    :raises ClientDisconnected: it left.
    """
    results: list[T] = []
    with unwrapped():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
            results.append(await work())
            tasks.cancel_scope.cancel()
    if not results:
        raise ClientDisconnected
    return results[0]
