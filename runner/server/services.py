"""What the routes work with: plugins, store, scheduler, and the settings."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread

from runner import __version__
from runner.config import process_environment
from runner.hardware.machine import read_machine
from runner.plugins import Plugins
from runner.scheduler import Limits, Scheduler
from runner.scheduler.backends import BackendCatalog
from runner.scheduler.effects import WorkerEffects
from runner.server.journal import ENGINE_LOGGER
from runner.server.listing import Listings
from runner.server.load_config import load_config
from runner.store import ModelStore
from runner.worker.environment import worker_environment
from runner.worker.probe import probe_backend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from litestar import Request

    from runner.api.backend import EngineProbe
    from runner.config import Settings
    from runner.plugins import Backend

__all__ = ["Services", "open_services", "services_of"]

log = logging.getLogger(__name__)

#: Pulls that run at the same time; others wait.
MAX_PULLS = 2
PROBE_TIMEOUT_S = 60.0


class Services:
    """Everything that is shared by the requests of one daemon."""

    def __init__(
        self,
        *,
        settings: Settings,
        plugins: Plugins,
        catalog: BackendCatalog,
        store: ModelStore,
        scheduler: Scheduler,
    ) -> None:
        self.settings = settings
        self.plugins = plugins
        self.catalog = catalog
        self.store = store
        self.scheduler = scheduler
        self.version = __version__
        #: How each backend was configured to load models, by its name.
        self.load_configs = {
            name: load_config(backend.info, settings.backends.get(name, {}))
            for name, backend in plugins.backends.items()
        }
        self.listings = Listings(store)
        self.pulls = anyio.CapacityLimiter(MAX_PULLS)


def services_of(request: Request[Any, Any, Any]) -> Services:
    """The services of the application that serves this request."""
    return cast("Services", request.app.state.services)


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open the store, load the plugins, start the scheduler; on leaving, stop them in good order.

    :raises StoreLocked: another daemon owns the store.
    """
    plugins = Plugins.load(settings)
    for name in settings.backends.keys() - plugins.backends.keys():
        log.warning("config.toml: [backends.%r] is of no use: no such backend is active", name)
    open_store = partial(ModelStore.open, settings.models_path, sources=plugins.sources)
    store = await anyio.to_thread.run_sync(open_store)
    try:
        async with (
            WorkerEffects(
                plugins,
                environ=process_environment(),
                stall_s=settings.load_stall_s,
                log=logging.getLogger(ENGINE_LOGGER).info,
                memory_limit_bytes=settings.memory_limit_bytes,
            ) as effects,
            anyio.create_task_group() as tasks,
        ):
            limits = Limits(
                keep_alive_s=settings.keep_alive_s,
                queue_limit=settings.queue_limit,
                starvation_s=settings.starvation_s,
            )
            scheduler = Scheduler(effects, limits)
            await tasks.start(scheduler.run)
            yield Services(
                settings=settings,
                plugins=plugins,
                catalog=_catalog(plugins, settings),
                store=store,
                scheduler=scheduler,
            )
            # Requests have had their time by now; what still runs is cut off.
            await scheduler.drain(0.0)
            tasks.cancel_scope.cancel()
    finally:
        store.close()


def _catalog(plugins: Plugins, settings: Settings) -> BackendCatalog:
    async def probe(backend: Backend) -> EngineProbe:
        environment = worker_environment(backend.info.environment, process_environment())
        return await probe_backend(
            backend.info.name, environment=environment, timeout_s=PROBE_TIMEOUT_S
        )

    cache_dir = settings.home / "cache" / "probes"
    return BackendCatalog(plugins, read_machine(), probe=probe, cache_dir=cache_dir)
