"""``POST /models/create``: a model into the store, with its progress line by line."""

from __future__ import annotations

import hashlib
import html
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec

from runner.api.errors import ForbiddenError, ModelNotFound, NotFoundError
from runner.server.context import header, is_local_socket
from runner.server.disconnect import cancel_on_disconnect, unwrapped
from runner.server.errors import as_runner_error
from runner.server.streaming import Body

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from litestar.types import Receive, Scope, Send

    from runner.api.sources import Source
    from runner.server.services import Services
    from runner.store.records import StoredModel

    Emit = Callable[["PullLine"], Coroutine[Any, Any, None]]

__all__ = ["PullBody", "PullLayer", "PullLine", "PullStream", "choose_source", "format_line"]

#: At least this much time lies between two lines of progress.
LINE_INTERVAL_S = 0.1


class PullBody(msgspec.Struct, frozen=True, kw_only=True, rename={"source": "from"}):
    """The body of ``POST /models/create``."""

    source: str = ""


class PullLayer(msgspec.Struct, frozen=True, kw_only=True):
    """The layer that a line of progress is about."""

    id: str = ""
    size: int = 0
    current: int = 0


class PullLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the answer."""

    type: Literal["progress", "success", "warning", "error"]
    message: str
    total: int = 0
    layer: PullLayer = PullLayer()
    mode: Literal["pull", "push"] = "pull"
    #: Of an error; not in Docker Model Runner's API.
    code: str | msgspec.UnsetType = msgspec.UNSET
    #: With success, the name to run the model by; not in Docker Model Runner's API.
    model: str | msgspec.UnsetType = msgspec.UNSET


def format_line(line: PullLine, *, is_json: bool) -> bytes:
    """The line as sent: JSON, HTML-escaped unless the client asked for exactly JSON."""
    text = msgspec.json.encode(line).decode()
    if not is_json:
        # The quotes as Go's escaper writes them.
        text = html.escape(text).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")
    return text.encode() + b"\n"


def choose_source(services: Services, reference: str, scope: Scope) -> Source:
    """The source that owns the reference.

    :raises ModelNotFound: no source does: it would be a registry's.
    :raises ForbiddenError: the source reads the caller's files, and the caller may be elsewhere.
    """
    for source in services.plugins.sources:
        if source.claims(reference):
            if source.reads_host_files and not is_local_socket(scope):
                raise ForbiddenError(
                    f'"{reference}" names a file on this machine: that is taken over the Unix '
                    "socket only"
                )
            return source
    names = ", ".join(f"{source.name}/…" for source in services.plugins.sources) or "none"
    raise ModelNotFound(
        reference,
        hint="this version of Runner cannot pull from registries yet; it pulls model files and "
        f"from its sources: {names}",
    )


class PullStream:
    """The ASGI application that answers one pull.

    Nothing is sent before the first progress, so a failure until then has its status. A client
    that leaves stops the work.
    """

    def __init__(self, services: Services, reference: str) -> None:
        self._services = services
        self._reference = reference

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        is_json = header(scope, b"accept") == b"application/json"
        media_type = "application/json" if is_json else "text/plain; charset=utf-8"
        body = Body(send, {"content-type": media_type, "cache-control": "no-cache"})
        emit: Emit = partial(self._emit, body, is_json=is_json)
        with unwrapped():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_on_disconnect, receive, tasks.cancel_scope)
                try:
                    await emit(await self._pull(scope, emit))
                except Exception as exc:
                    if not body.is_started:
                        raise
                    error = as_runner_error(exc)
                    await emit(
                        PullLine(type="error", message=f"Error: {error.message}", code=error.code)
                    )
                await body.finish()
                tasks.cancel_scope.cancel()

    async def _emit(self, body: Body, line: PullLine, *, is_json: bool) -> None:
        await body.write(format_line(line, is_json=is_json))

    async def _pull(self, scope: Scope, emit: Emit) -> PullLine:
        services, reference = self._services, self._reference
        source = next((s for s in services.plugins.sources if s.claims(reference)), None)
        if source is None or not source.reads_host_files:
            stored = await anyio.to_thread.run_sync(self._find_stored)
            if stored is not None:
                return _success(stored, f"Using cached model: {stored.config.size}")
        source = choose_source(services, reference, scope)
        async with services.pulls:
            stored = await anyio.to_thread.run_sync(self._add, source, emit)
        return _success(stored, "Model pulled successfully")

    def _find_stored(self) -> StoredModel | None:
        try:
            return self._services.store.resolve(self._reference)
        except NotFoundError:
            return None

    def _add(self, source: Source, emit: Emit) -> StoredModel:
        """Find and store the model; runs in a thread, which the client's departure ends."""
        layer_id = f"sha256:{hashlib.sha256(self._reference.encode()).hexdigest()}"
        last = -LINE_INTERVAL_S

        def progress(done: int, total: int) -> None:
            nonlocal last
            anyio.from_thread.check_cancelled()
            now = time.monotonic()
            if now - last < LINE_INTERVAL_S and done != total:
                return
            last = now
            line = PullLine(
                type="progress",
                message=f"Downloaded: {done / 2**20:.2f} MB",
                total=total,
                layer=PullLayer(id=layer_id, size=total, current=done),
            )
            anyio.from_thread.run(emit, line)

        found = source.find(self._reference)
        return self._services.store.add(found, source=source, progress=progress)


def _success(stored: StoredModel, message: str) -> PullLine:
    return PullLine(type="success", message=message, model=stored.name)
