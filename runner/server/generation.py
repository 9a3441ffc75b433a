"""From a model's name to the events of an engine: resolve, choose a backend, lease, submit."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import anyio.to_thread
import msgspec

from runner.api.errors import RequestError
from runner.api.requests import EngineRequest
from runner.config import parse_duration
from runner.scheduler import LoadSpec, load_key
from runner.server.context import header, is_local_socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from litestar.types import Scope

    from runner.api.backend import Mode
    from runner.api.events import Event
    from runner.api.model import Model
    from runner.plugins import Backend
    from runner.scheduler import Lease
    from runner.server.services import Services

__all__ = ["Job", "Plan", "client_of", "keep_alive_seconds", "perform", "plan", "preload"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which backend runs which model how."""

    spec: LoadSpec
    #: Tells two set-ups apart that may answer the same request differently.
    fingerprint: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One request to an engine, and on whose behalf."""

    spec: LoadSpec
    request: EngineRequest
    #: Shares of the queue are by client.
    client: str
    keep_alive_s: float | None


async def plan(services: Services, *, reference: str, named: str | None, mode: Mode) -> Plan:
    """Find the model and the backend that runs it.

    :raises RequestError: no model was named, or the backend named in the path cannot run it.
    :raises ModelNotFound: nothing is pulled behind the user's back.
    """
    if not reference.strip():
        raise RequestError("model is required", param="model")

    def load() -> Model:
        return services.store.load(services.store.resolve(reference))

    model = await anyio.to_thread.run_sync(load)
    backend: Backend = await services.catalog.select(model, mode=mode, named=named)
    config = services.load_configs[backend.info.name]
    spec = LoadSpec(
        key=load_key(backend.info.name, backend.version, model.id, config),
        backend=backend.info.name,
        model=model,
        config=config,
    )
    return Plan(spec=spec, fingerprint=f"{backend.info.name}-{backend.version}")


async def perform(
    services: Services,
    job: Job,
    sink: Callable[[list[Event]], Awaitable[None]],
    *,
    on_lease: Callable[[Lease], None] | None = None,
) -> None:
    """Run a job, handing each step's events to ``sink``; cancelling this cancels it in the engine.

    :raises RunnerError: whatever stands in the way, before or after the first event.
    """
    lease_of = services.scheduler.lease
    async with lease_of(job.spec, client=job.client, keep_alive_s=job.keep_alive_s) as lease:
        if on_lease is not None:
            on_lease(lease)
        worker = await lease.worker()
        async with worker.submit(job.request) as stream:
            async for events in stream:
                await sink(events)


async def preload(
    services: Services, spec: LoadSpec, *, client: str, keep_alive_s: float | None
) -> None:
    """Load the model, and return when it is ready."""
    async with services.scheduler.lease(spec, client=client, keep_alive_s=keep_alive_s) as lease:
        await lease.worker()


def keep_alive_seconds(value: str | float | None) -> float | None:
    """The body's ``keep_alive``: a duration such as ``5m``, or seconds; negative keeps the model.

    :raises RequestError: it is neither.
    """
    return None if value is None else parse_duration(str(value))


def client_of(scope: Scope, user: str | None) -> str:
    """Who asks: the API key, else the user the body names, else the address."""
    key = header(scope, b"authorization") or header(scope, b"x-api-key")
    if key is not None:
        return f"key:{hashlib.sha256(key).hexdigest()[:16]}"
    if user:
        return f"user:{user}"
    if is_local_socket(scope):
        return "socket"
    address = scope.get("client")
    return f"address:{address[0]}" if address is not None else "unknown"
