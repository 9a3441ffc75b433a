"""Waiting for something to become true, with a deadline instead of a sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["wait_until", "wait_until_async"]

_INTERVAL_S = 0.01


def wait_until(predicate: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Return as soon as ``predicate()`` is true.

    :param what: what is waited for, for the message.
    :raises TimeoutError: it did not become true in ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise TimeoutError(_message(what, timeout_s))
        time.sleep(_INTERVAL_S)


async def wait_until_async(
    predicate: Callable[[], object], timeout_s: float = 10.0, what: str = ""
) -> None:
    """Like :func:`wait_until`, and lets other tasks run meanwhile."""
    with anyio.move_on_after(timeout_s):
        while not predicate():  # noqa: ASYNC110 - what it looks at may be another process
            await anyio.sleep(_INTERVAL_S)
        return
    raise TimeoutError(_message(what, timeout_s))


def _message(what: str, timeout_s: float) -> str:
    return f"waited {timeout_s:g} s in vain for {what or 'a condition'}"
