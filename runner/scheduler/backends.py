"""Which backends there are, what they can do on this machine, and which one runs a model."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
import msgspec

from runner.api.backend import EngineProbe, HardwareSupport, Mode
from runner.api.errors import PluginError, RunnerError, UnsupportedOperation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from runner.api.backend import Machine
    from runner.api.model import Model
    from runner.plugins import Backend, Plugins

__all__ = ["BackendCatalog", "BackendStatus", "choose_backend"]

R = TypeVar("R")

log = logging.getLogger(__name__)

#: A hook in the daemon that takes longer than this is abandoned.
HOOK_DEADLINE_S = 10.0


class BackendStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``runner backends list``."""

    name: str
    description: str
    aliases: tuple[str, ...]
    #: The plugin's distribution and version.
    distribution: str
    version: str
    #: The engine library and its version; empty when it could not be asked.
    engine: str
    build: str
    formats: tuple[str, ...]
    modes: tuple[Mode, ...]
    rank: int
    is_supported: bool
    devices: tuple[str, ...]
    #: Why it is not supported, or what it will use.
    reason: str
    #: Chosen when a request names none and several could answer.
    is_default: bool


class BackendCatalog:
    """Knows every backend's probe and hardware support; asks each once.

    :param probe: runs a backend's engine probe in a child process.
    :param cache_dir: where probes are kept between starts, by distribution version.
    """

    def __init__(
        self,
        plugins: Plugins,
        machine: Machine,
        *,
        probe: Callable[[Backend], Awaitable[EngineProbe]],
        cache_dir: Path,
    ) -> None:
        self._plugins = plugins
        self._machine = machine
        self._probe = probe
        self._cache_dir = cache_dir
        self._known: dict[str, tuple[EngineProbe | None, HardwareSupport]] = {}
        self._locks = {name: anyio.Lock() for name in plugins.backends}

    async def describe(self) -> tuple[BackendStatus, ...]:
        """All backends, highest rank first."""
        rows = []
        default: str | None = None
        for name, backend in self._plugins.backends.items():
            probe, support = await self._assess(backend)
            if default is None and support.is_supported:
                default = name
            info = backend.info
            rows.append(
                BackendStatus(
                    name=name,
                    description=info.description,
                    aliases=info.aliases,
                    distribution=backend.distribution,
                    version=backend.version,
                    engine=probe.version if probe else "",
                    build=probe.build if probe else "",
                    formats=info.formats,
                    modes=info.modes,
                    rank=info.rank,
                    is_supported=support.is_supported,
                    devices=support.devices,
                    reason=support.reason,
                    is_default=default == name,
                )
            )
        return tuple(rows)

    async def select(self, model: Model, *, mode: Mode, named: str | None) -> Backend:
        """The backend that runs ``model``; one that was named in the path is never overridden.

        :raises BackendNotFound: the named one is not installed.
        :raises UnsupportedOperation: the named one, or none, can run it; names those that can.
        """
        wanted = None if named is None else self._plugins.backend(named).info.name
        # The rules need hardware support of those candidates only that pass the cheap tests.
        supported: dict[str, HardwareSupport] = {}
        for name, backend in self._plugins.backends.items():
            if model.format in backend.info.formats:
                supported[name] = (await self._assess(backend))[1]
        chosen = choose_backend(
            self._plugins.backends.values(), supported, model=model, mode=mode, named=wanted
        )
        return self._plugins.backends[chosen]

    async def _assess(self, backend: Backend) -> tuple[EngineProbe | None, HardwareSupport]:
        name = backend.info.name
        async with self._locks[name]:
            if name not in self._known:
                self._known[name] = await self._ask(backend)
        return self._known[name]

    async def _ask(self, backend: Backend) -> tuple[EngineProbe | None, HardwareSupport]:
        probe: EngineProbe | None = None
        try:
            probe = await self._cached_probe(backend)
            support = await call_hook(
                backend, lambda: backend.hardware_support(machine=self._machine, probe=probe)
            )
        except RunnerError as exc:
            log.warning("backend %s cannot be used: %s", backend.info.name, exc.message)
            support = HardwareSupport(is_supported=False, reason=exc.message)
        return probe, support

    async def _cached_probe(self, backend: Backend) -> EngineProbe:
        path = anyio.Path(self._cache_dir / f"{_cache_key(backend)}.json")
        try:
            return msgspec.json.decode(await path.read_bytes(), type=EngineProbe)
        except (OSError, msgspec.DecodeError):
            pass
        probe = await self._probe(backend)
        try:
            await path.parent.mkdir(parents=True, exist_ok=True)
            await path.write_bytes(msgspec.json.encode(probe))
        except OSError as exc:
            log.warning("cannot keep the probe of %s: %s", backend.info.name, exc)
        return probe


def choose_backend(
    backends: Iterable[Backend],
    supported: dict[str, HardwareSupport],
    *,
    model: Model,
    mode: Mode,
    named: str | None,
) -> str:
    """The rule of selection, over what is known; see :meth:`BackendCatalog.select`.

    :param backends: highest rank first.
    :param supported: hardware support of those that read the model's format.
    """
    obstacles: dict[str, str] = {}
    able: list[str] = []
    for backend in backends:
        info = backend.info
        if model.format not in info.formats:
            obstacles[info.name] = (
                f"reads {', '.join(info.formats) or 'nothing'}, not {model.format}"
            )
        elif mode not in info.modes:
            obstacles[info.name] = f"does not do {mode}"
        elif not supported[info.name].is_supported:
            obstacles[info.name] = supported[info.name].reason or "is not supported on this machine"
        else:
            able.append(info.name)
    if named in able:
        return named
    if named is None and able:
        return able[0]
    others = f"; these can: {', '.join(able)}" if able else "; no installed backend can"
    if named is not None:
        raise UnsupportedOperation(
            f"backend {named} cannot run {model.name} for {mode}: it {obstacles[named]}{others}"
        )
    reasons = "; ".join(f"{name} {why}" for name, why in obstacles.items()) or "none is installed"
    raise UnsupportedOperation(f"no backend can run {model.name} for {mode}: {reasons}")


async def call_hook(backend: Backend, call: Callable[[], R]) -> R:
    """Run a backend's hook in a thread with a deadline; a hook that blocks longer is abandoned.

    :raises PluginError: it took too long.
    """
    try:
        with anyio.fail_after(HOOK_DEADLINE_S):
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
    except TimeoutError as exc:
        raise PluginError(
            f"backend {backend.info.name}: a hook did not return within {HOOK_DEADLINE_S:.0f} s"
        ) from exc


def _cache_key(backend: Backend) -> str:
    """By name and versions: a probe is asked again when the plugin or Runner changes."""
    text = f"{backend.info.name}\0{backend.distribution}\0{backend.version}"
    return f"{backend.info.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
