"""Every hook of Runner; these docstrings are the plugin author's manual.

A plugin is a module (or an object) whose functions carry :data:`runner.api.hookimpl` and the
names below. An implementation may take fewer arguments than its hook: the ones it names are passed,
always by keyword. Hooks are plain functions, never ``async``, and never called per token. While
the daemon serves, each call runs in a thread with a deadline; one that blocks longer is abandoned.

Backends register under the entry point group ``runner.backends`` (the entry point's name is the
backend's name), everything else under ``runner.plugins``. Outside backends, the backend hooks may
only be *wrapped* (``hookimpl(wrapper=True)``): to time a call, to refuse it, to adjust its result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.api.hooks import hookspec

if TYPE_CHECKING:
    from runner.api.backend import (
        BackendInfo,
        Budget,
        EngineProbe,
        HardwareSupport,
        LoadConfig,
        Machine,
        MemoryEstimate,
        Placement,
    )
    from runner.api.engine import Engine, LoadReport
    from runner.api.model import Model
    from runner.api.sources import RegisterSource

__all__ = [
    "BACKEND_HOOKS",
    "runner_backend_info",
    "runner_estimate_memory",
    "runner_hardware_support",
    "runner_load_model",
    "runner_probe_engine",
    "runner_register_sources",
    "runner_unload_model",
]

# --- backends -------------------------------------------------------------------------------


@hookspec(firstresult=True)
def runner_backend_info() -> BackendInfo:
    """Say what this backend is.

    **When:** once, when the plugin is loaded, in the daemon and in each of its workers.
    Return a constant: importing the module that implements this must not import the engine library.

    **Result:** a :class:`~runner.api.BackendInfo`. Required; its ``name`` equals the entry point's.

    **Errors:** if you raise, or the answer is not a ``BackendInfo``, the plugin is listed as failed
    and the daemon goes on without it.

    **Since:** 0.1
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def runner_probe_engine() -> EngineProbe:
    """Ask the engine library what only it knows: its version, its build, the devices it sees.

    **When:** in a short-lived child process, and again only when the backend's version
    changes. Here, and in the worker, you may import the library.

    **Result:** an :class:`~runner.api.EngineProbe`. Required.

    **Errors:** if you raise, or the child dies, the backend is *not supported*, and the reason is
    the last line of the traceback.

    **Since:** 0.1
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def runner_hardware_support(machine: Machine, probe: EngineProbe) -> HardwareSupport:
    """Decide whether this backend can work on this machine.

    **When:** in the daemon, after the probe. Decide from the arguments alone.

    :param machine: what the machine has.
    :param probe: what :func:`runner_probe_engine` returned.

    **Result:** a :class:`~runner.api.HardwareSupport`, with the reason in words either way.
    Required.

    **Errors:** if you raise, the backend is not supported, and the reason is your message.

    **Since:** 0.1
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def runner_estimate_memory(
    model: Model, config: LoadConfig, machine: Machine, budget: Budget
) -> MemoryEstimate:
    """Say what loading a model will take, and choose what the user left to you.

    **When:** in the daemon, before a load; also for models that are not downloaded, so
    ``model.files`` may be empty. Use ``model.header`` only; open no file.

    :param config: what was asked for; a None is yours to choose.
    :param budget: bytes you may use by device. Choose a context and a placement within it; if even
        the smallest does not fit, return that one: the scheduler refuses it with the numbers.

    **Result:** a :class:`~runner.api.MemoryEstimate`, whose placement is passed to
    :func:`runner_load_model` unchanged. Required.

    **Errors:** a ``RunnerError`` is shown to the client as it is (for example ``RequestError`` for
    an architecture you cannot run); anything else is ``plugin_error``.

    **Since:** 0.1
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def runner_load_model(
    model: Model, config: LoadConfig, placement: Placement, report: LoadReport
) -> Engine:
    """Load a model and return the engine that answers requests.

    **When:** once in the life of a worker process, which runs this model and nothing else. You own
    the process: import the library, use threads, crash if you must; nobody else notices.

    :param placement: from your estimate; obey it.
    :param report: tell of progress; a load that is silent and idle for long is judged stuck.

    **Result:** an :class:`~runner.api.Engine`. Required.

    **Errors:** whatever you raise ends the worker; the client sees your message and the end of the
    worker's stderr.

    **Since:** 0.1
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def runner_unload_model(engine: Engine) -> None:
    """Release everything the engine holds.

    **When:** in the worker, before it exits in good order. Not after a crash or a kill.

    **Result:** ignored. Optional.

    **Errors:** logged; the worker exits all the same.

    **Since:** 0.1
    """


# --- model sources --------------------------------------------------------------------------


@hookspec
def runner_register_sources(register: RegisterSource) -> None:
    """Register the model sources of this plugin.

    **When:** once, when the daemon starts.

    :param register: call it with each :class:`~runner.api.Source`.

    **Result:** ignored.

    **Errors:** if you raise, the plugin is listed as failed, and none of its sources is used. A
    namespace that another plugin has taken is an error of the later one.

    **Since:** 0.1
    """


#: The hooks that only backends implement; other plugins may wrap them.
BACKEND_HOOKS = (
    "runner_backend_info",
    "runner_probe_engine",
    "runner_hardware_support",
    "runner_estimate_memory",
    "runner_load_model",
    "runner_unload_model",
)
