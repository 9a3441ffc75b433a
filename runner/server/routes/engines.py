"""What is loaded, and on which backends; unloading."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import msgspec
from litestar import Request, Response, get, post

from runner.api.backend import Placement
from runner.api.errors import RequestError, RunnerError
from runner.openai.body import decode_struct
from runner.server.disconnect import read_body
from runner.server.services import Services, services_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.scheduler import WorkerStatus
    from runner.scheduler.backends import BackendStatus

__all__ = ["ROUTES", "LoadedModel", "UnloadBody", "UnloadResult", "go_duration", "loaded_model"]

#: Go's zero time, which Docker Model Runner sends for what is in use.
_NEVER = "0001-01-01T00:00:00Z"


class LoadedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``GET /engines/ps``: Docker Model Runner's fields, then ours."""

    backend_name: str
    model_name: str
    mode: str
    last_used: str
    in_use: bool | msgspec.UnsetType = msgspec.UNSET
    loading: bool | msgspec.UnsetType = msgspec.UNSET
    keep_alive: str

    model_id: str
    state: str
    pid: int | None
    #: Requests that have the worker, and that wait for it.
    requests: int
    waiting: int
    #: Sequences that are being decoded, and that wait for room in the engine.
    sequences: int | None
    sequences_queued: int | None
    kv_used: int | None
    kv_cells: int | None
    #: Estimated, over all devices and by device.
    memory_bytes: int | None
    memory: dict[str, int]
    placement: Placement | None
    #: Of the load, 0 to 1.
    progress: float | None


class UnloadBody(msgspec.Struct, frozen=True, kw_only=True):
    """What to unload: everything, or some models, of one backend or of all."""

    all: bool = False
    backend: str = ""
    models: list[str] = []


class UnloadResult(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers were told to end."""

    unloaded_runners: int


@get("/engines/status", summary="The state of each backend", opt={"answer": dict[str, str]})
async def status(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Backend name to a status line."""
    rows = await services_of(request).catalog.describe()
    return _json({row.name: _status_line(row) for row in rows})


@get("/engines/ps", summary="The loaded models", opt={"answer": list[LoadedModel]})
async def ps(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Every worker there is or will be."""
    workers = await services_of(request).scheduler.status()
    return _json([loaded_model(worker) for worker in workers])


@post(
    "/engines/unload",
    status_code=200,
    summary="Unload models",
    opt={"body": UnloadBody, "answer": UnloadResult},
)
async def unload(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Free memory. Workers that answer requests finish those first."""
    services = services_of(request)
    body = decode_struct(await read_body(request), UnloadBody)
    if not (body.all or body.models or body.backend):
        raise RequestError("say what to unload: models, a backend, or all", param="models")
    backend = services.plugins.backend(body.backend).info.name if body.backend else None
    model_ids = await _model_ids(services, body.models) if body.models and not body.all else None
    count = await services.scheduler.unload(backend=backend, model_ids=model_ids)
    return _json(UnloadResult(unloaded_runners=count))


@get("/runner/backends", summary="The backends in full")
async def backends(request: Request[Any, Any, Any]) -> Response[bytes]:
    """What ``runner backends list`` shows."""
    return _json(await services_of(request).catalog.describe())


@get("/runner/plugins", summary="The plugins, working or not")
async def plugins(request: Request[Any, Any, Any]) -> Response[bytes]:
    """What ``runner plugins list`` shows."""
    return _json(services_of(request).plugins.rows)


def loaded_model(worker: WorkerStatus) -> LoadedModel:
    """A worker's state on the wire."""
    is_loading = worker.state in ("estimating", "waiting", "loading")
    is_idle = not worker.leases and not is_loading and worker.last_used_unix is not None
    stats = worker.stats
    return LoadedModel(
        backend_name=worker.backend,
        model_name=worker.model_name,
        mode="completion",
        last_used=_rfc3339(worker.last_used_unix or 0.0) if is_idle else _NEVER,
        in_use=True if worker.leases else msgspec.UNSET,
        loading=True if is_loading else msgspec.UNSET,
        keep_alive=go_duration(worker.keep_alive_s),
        model_id=worker.model_id,
        state=worker.state,
        pid=worker.pid,
        requests=worker.leases,
        waiting=worker.waiting,
        sequences=stats.active if stats else None,
        sequences_queued=stats.queued if stats else None,
        kv_used=stats.kv_used if stats else None,
        kv_cells=stats.kv_cells if stats else None,
        memory_bytes=sum(worker.estimate.values()) if worker.estimate else None,
        memory=worker.estimate,
        placement=worker.placement,
        progress=worker.progress,
    )


def go_duration(seconds: float) -> str:
    """``5m0s``, as Go prints durations; -1 for one without end."""
    if seconds < 0:
        return "-1"
    whole, fraction = divmod(round(seconds * 1000), 1000)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest}.{fraction:03}".rstrip("0") if fraction else str(rest)
    if hours:
        return f"{hours}h{minutes}m{shown}s"
    return f"{minutes}m{shown}s" if minutes else f"{shown}s"


def _rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat().replace("+00:00", "Z")


def _status_line(row: BackendStatus) -> str:
    if row.is_supported:
        return f"Running: {row.engine or row.version}"
    return f"Error: {row.reason}"


async def _model_ids(services: Services, references: list[str]) -> list[str]:
    """Ids of the named models; what was removed since it was loaded is found by its worker."""
    loaded: Mapping[str, str] = {
        worker.model_name: worker.model_id for worker in await services.scheduler.status()
    }

    def resolve() -> list[str]:
        ids = []
        for reference in references:
            try:
                ids.append(services.store.resolve(reference, allow_partial=True).id)
            except RunnerError:
                ids.append(loaded.get(reference, reference))
        return ids

    return await anyio.to_thread.run_sync(resolve)


def _json(answer: object) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")


ROUTES = [status, ps, unload, backends, plugins]
