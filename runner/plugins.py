"""The plugin manager: discovers plugins, isolates the broken ones, hands out backends.

First-party plugins come through the same entry points as a stranger's. One that cannot be used
costs one warning and one row in the inventory; nothing else notices.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import inspect
import logging
import re
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import pluggy

from runner import hookspecs
from runner.api.backend import (
    API_VERSION,
    BackendInfo,
    EngineProbe,
    HardwareSupport,
    MemoryEstimate,
)
from runner.api.engine import Engine
from runner.api.errors import (
    BackendNotFound,
    PluginDuplicate,
    PluginError,
    PluginLoadFailed,
    RunnerError,
)
from runner.api.hooks import PROJECT
from runner.api.sources import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from runner.api.backend import Budget, LoadConfig, Machine, Placement
    from runner.api.engine import LoadReport
    from runner.api.model import Model
    from runner.config import Settings

__all__ = ["Backend", "PluginRow", "Plugins", "load_backend"]

log = logging.getLogger(__name__)

BACKENDS = "runner.backends"
PLUGINS = "runner.plugins"
#: What a backend cannot do without.
_REQUIRED = tuple(hook for hook in hookspecs.BACKEND_HOOKS if hook != "runner_unload_model")
_BACKEND_NAME = re.compile(r"[a-z][a-z0-9._-]*")
_SOURCE_NAME = re.compile(r"[a-z][a-z0-9-]*")

R = TypeVar("R")


class PluginRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``runner plugins list``."""

    name: str
    kind: Literal["backend", "plugin"]
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    status: Literal["active", "failed", "blocked"]
    error: str | None = None


class Backend:
    """One backend as the core sees it: its declaration, and its hooks without everyone else's.

    Each method calls the hook of the same name, with the wrappers of other plugins around it.

    :raises RunnerError: what the hook raised, if it is one; anything else, a missing or a mistyped
        result is a ``PluginError`` that names the backend and the hook.
    """

    def __init__(self, plugins: Plugins, row: PluginRow, info: BackendInfo) -> None:
        self._plugins = plugins
        self.info = info
        self.distribution = row.distribution
        self.version = row.version

    def probe_engine(self) -> EngineProbe:
        """Ask the engine library about itself; imports it, so only in a child process."""
        return self._call("runner_probe_engine", EngineProbe)

    def hardware_support(self, *, machine: Machine, probe: EngineProbe) -> HardwareSupport:
        """Whether the backend works on this machine."""
        return self._call("runner_hardware_support", HardwareSupport, machine=machine, probe=probe)

    def estimate_memory(
        self, *, model: Model, config: LoadConfig, machine: Machine, budget: Budget
    ) -> MemoryEstimate:
        """What a load takes, and the placement chosen within the budget."""
        return self._call(
            "runner_estimate_memory",
            MemoryEstimate,
            model=model,
            config=config,
            machine=machine,
            budget=budget,
        )

    def load_model(
        self, *, model: Model, config: LoadConfig, placement: Placement, report: LoadReport
    ) -> Engine:
        """Load a model; in a worker only."""
        return self._call(
            "runner_load_model",
            Engine,
            model=model,
            config=config,
            placement=placement,
            report=report,
        )

    def unload_model(self, engine: Engine) -> None:
        """Release what an engine holds; in a worker only."""
        self._call("runner_unload_model", None, engine=engine)

    def _call(self, hook: str, result: type[R] | None, **arguments: Any) -> R:
        return self._plugins.call_backend(self.info.name, hook, result, arguments)


class Plugins:
    """All plugins of this installation, loaded or not; made by :meth:`load`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._rows: dict[str, PluginRow] = {}
        self._backends: dict[str, Backend] = {}
        self._sources: dict[str, Source] = {}
        #: Entry points of backends: a name goes before anybody's alias, whoever is loaded first.
        self._names = {entry.name for entry in _entry_points(BACKENDS)}
        if settings.trace_hooks:
            self._manager.add_hookcall_monitoring(_trace_before, _trace_after)

    @classmethod
    def load(cls, settings: Settings, *, only_backend: str | None = None) -> Plugins:
        """Discover and register every plugin.

        :param only_backend: leave the other backends out, and ask nobody for model sources: what a
            worker wants.
        :raises PluginError: with ``plugins_strict``, for the first plugin that is broken.
        """
        plugins = cls(settings)
        for entry in _entry_points(BACKENDS):
            if only_backend in (None, entry.name):
                plugins._add(BACKENDS, entry)
        for entry in _entry_points(PLUGINS):
            plugins._add(PLUGINS, entry)
        if only_backend is None:
            plugins._collect_sources()
        return plugins

    @property
    def rows(self) -> tuple[PluginRow, ...]:
        """The inventory, failed and blocked plugins included."""
        return tuple(self._rows.values())

    @property
    def backends(self) -> Mapping[str, Backend]:
        """The usable backends by name, highest rank first."""
        ordered = sorted(self._backends.values(), key=lambda b: (-b.info.rank, b.info.name))
        return {backend.info.name: backend for backend in ordered}

    @property
    def sources(self) -> tuple[Source, ...]:
        """The model sources of all plugins."""
        return tuple(self._sources.values())

    def backend(self, name: str) -> Backend:
        """The backend of that name or alias.

        :raises BackendNotFound: there is none; the message lists those that are installed.
        """
        for backend in self._backends.values():
            if name == backend.info.name or name in backend.info.aliases:
                return backend
        raise BackendNotFound(name, known=tuple(self.backends))

    def call_backend(
        self, name: str, hook: str, result: type[R] | None, arguments: dict[str, Any]
    ) -> R:
        """Call one backend's hook; see :class:`Backend`."""
        key = f"{BACKENDS}:{name}"
        others = [
            plugin
            for other, plugin in self._manager.list_name_plugin()
            if other.startswith(f"{BACKENDS}:") and other != key
        ]
        # Made for each call: a caller kept for later would also run backends registered since.
        caller = self._manager.subset_hook_caller(hook, others)
        try:
            value = caller(**arguments)
        except RunnerError:
            raise
        except Exception as exc:
            raise PluginError(f"backend {name}: {hook} raised {_describe(exc)}") from exc
        if result is not None and not isinstance(value, result):
            raise PluginError(
                f"backend {name}: {hook} returned {value!r:.80} where a {result.__name__} is due"
            )
        return value  # type: ignore[no-any-return]  # pluggy is untyped; checked just above

    def _add(self, group: str, entry: importlib.metadata.EntryPoint) -> None:
        key = f"{group}:{entry.name}"
        row = _row(group, entry)
        settings = self._settings
        blocked = entry.name in settings.plugins_block or (
            settings.plugins_allow is not None and entry.name not in settings.plugins_allow
        )
        if blocked:
            self._rows.setdefault(key, msgspec.structs.replace(row, status="blocked"))
            return
        if (taken := self._rows.get(key)) is not None:
            owner = f"{taken.distribution} {taken.version}"
            error = PluginDuplicate(
                f"the name {entry.name} is taken by {owner}: uninstall one of the two"
            )
            # The first keeps the name; the second gets a row of its own.
            self._fail(f"{key}@{row.distribution}", row, error)
            return
        try:
            plugin = _import(entry)
            hooks = _check_hooks(plugin, group)
            row = msgspec.structs.replace(row, hooks=tuple(hooks))
            self._manager.register(plugin, key)
        except (PluginError, pluggy.PluginValidationError, ValueError) as exc:
            self._fail(key, row, exc)
            return
        self._rows[key] = row
        if group == BACKENDS:
            self._add_backend(key, entry.name, row)

    def _add_backend(self, key: str, name: str, row: PluginRow) -> None:
        try:
            info = self.call_backend(name, "runner_backend_info", BackendInfo, {})
            self._check_info(name, info)
        except RunnerError as exc:
            self._manager.unregister(name=key)
            self._fail(key, row, exc)
            return
        self._backends[name] = Backend(self, row, info)

    def _check_info(self, name: str, info: BackendInfo) -> None:
        if info.name != name or not _BACKEND_NAME.fullmatch(name):
            raise PluginLoadFailed(
                f"the entry point is called {name} and BackendInfo.name is {info.name}: "
                f"they must be equal and match {_BACKEND_NAME.pattern}"
            )
        if info.api_version != API_VERSION:
            raise PluginLoadFailed(
                f"it was written for plugin API {info.api_version}; this Runner has {API_VERSION}: "
                "install a matching version"
            )
        try:
            info.options()
        except TypeError as exc:
            raise PluginLoadFailed(f"its options need a default for every field: {exc}") from exc
        for alias in info.aliases:
            taken = alias in self._names - {name}
            owners = (
                [alias]
                if taken
                else [n for n, b in self._backends.items() if alias in b.info.aliases]
            )
            if owners:
                raise PluginDuplicate(f"the name {alias} is taken by backend {owners[0]}")

    def _collect_sources(self) -> None:
        for key, plugin in self._manager.list_name_plugin():
            hook = "runner_register_sources"
            if key not in self._rows or hook not in self._rows[key].hooks:
                continue
            found: list[Source] = []
            others = [p for name, p in self._manager.list_name_plugin() if name != key]
            try:
                self._manager.subset_hook_caller(hook, others)(register=found.append)
                for source in found:
                    self._check_source(source)
            except Exception as exc:  # noqa: BLE001 - a plugin's fault stays its own
                self._manager.unregister(plugin)
                self._fail(key, self._rows[key], exc)
                continue
            self._sources |= {source.name: source for source in found}

    def _check_source(self, source: object) -> None:
        if not isinstance(source, Source) or not _SOURCE_NAME.fullmatch(source.name):
            raise PluginLoadFailed(
                f"{source!r:.80} is no Source with a name like {_SOURCE_NAME.pattern}"
            )
        if source.name in self._sources:
            raise PluginDuplicate(f"the namespace {source.name} is taken by another plugin")

    def _fail(self, key: str, row: PluginRow, exc: Exception) -> None:
        message = exc.message if isinstance(exc, RunnerError) else _describe(exc)
        owner = f"{row.kind} {row.name} ({row.distribution} {row.version})"
        if self._settings.plugins_strict:
            raise PluginLoadFailed(f"{owner}: {message}") from exc
        log.warning("%s is not used: %s", owner, message)
        self._rows[key] = msgspec.structs.replace(row, status="failed", error=message)


def load_backend(name: str, settings: Settings) -> Backend:
    """The one backend a worker runs, with the plugins that wrap it.

    :raises PluginLoadFailed: it cannot be used; the message says why.
    """
    plugins = Plugins.load(settings, only_backend=name)
    if name in plugins.backends:
        return plugins.backends[name]
    reasons = [r.error for r in plugins.rows if r.kind == "backend" and r.error is not None]
    raise PluginLoadFailed(f"backend {name}: {'; '.join(reasons) or 'not installed, or blocked'}")


def _entry_points(group: str) -> Iterable[importlib.metadata.EntryPoint]:
    """Entry points in a stable order; one that two paths of ``sys.path`` show counts once."""
    found: dict[tuple[str, str, str], importlib.metadata.EntryPoint] = {}
    for entry in importlib.metadata.entry_points(group=group):
        dist = entry.dist
        found.setdefault((entry.name, entry.value, dist.name if dist else ""), entry)
    return [found[key] for key in sorted(found)]


def _row(group: str, entry: importlib.metadata.EntryPoint) -> PluginRow:
    return PluginRow(
        name=entry.name,
        kind="backend" if group == BACKENDS else "plugin",
        distribution=entry.dist.name if entry.dist else "unknown",
        version=entry.dist.version if entry.dist else "unknown",
        status="active",
    )


def _import(entry: importlib.metadata.EntryPoint) -> object:
    try:
        plugin: object = entry.load()
    except (Exception, SystemExit) as exc:
        raise PluginLoadFailed(f"cannot import {entry.value}: {_describe(exc)}") from exc
    return plugin


def _check_hooks(plugin: object, group: str) -> list[str]:
    """The names of the plugin's hooks.

    pluggy accepts a misspelled hook, ignores an undecorated one, and lets an ``async`` one win with
    a coroutine that nobody awaits; so all three are looked for here.
    """
    known = set(hookspecs.__all__) - {"BACKEND_HOOKS"}
    hooks = []
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        options = getattr(function, f"{PROJECT}_impl", None)
        if options is None:
            if name in known and inspect.isfunction(function):
                raise PluginLoadFailed(f"{name} is not marked with @hookimpl")
            continue
        hook = options.get("specname") or name
        if hook not in known:
            close = difflib.get_close_matches(hook, known, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise PluginLoadFailed(f"there is no hook {hook}{hint}")
        if inspect.iscoroutinefunction(function):
            raise PluginLoadFailed(f"{hook} is async; hooks are plain functions")
        if group != BACKENDS and hook in hookspecs.BACKEND_HOOKS and not options.get("wrapper"):
            raise PluginLoadFailed(
                f"{hook} belongs to backends; another plugin may only wrap it: "
                "hookimpl(wrapper=True)"
            )
        hooks.append(hook)
    if group == BACKENDS and (missing := [hook for hook in _REQUIRED if hook not in hooks]):
        raise PluginLoadFailed(f"a backend must implement {', '.join(missing)}")
    if not hooks:
        raise PluginLoadFailed("it implements no hook")
    return hooks


def _describe(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__


def _trace_before(hook_name: str, hook_impls: object, kwargs: Mapping[str, Any]) -> None:
    log.info("hook %s(%s)", hook_name, ", ".join(f"{k}={v!r:.60}" for k, v in kwargs.items()))


def _trace_after(
    outcome: pluggy.Result[Any], hook_name: str, hook_impls: object, kwargs: Mapping[str, Any]
) -> None:
    result = outcome.exception if outcome.exception is not None else outcome.get_result()
    log.info("hook %s -> %.100r", hook_name, result)
