"""What only the native library knows; runs in a short-lived child."""

from __future__ import annotations

import ctypes
from importlib.metadata import version

from runner.api import EngineProbe
from runner_llamacpp.native import lib, native_log

__all__ = ["probe_engine"]


def probe_engine() -> EngineProbe:
    """Versions, compiled-in features, devices."""
    native_log()
    lib.llama_backend_init()
    features = lib.llama_print_system_info().decode("utf-8", "replace")
    enabled = [part.split("=")[0].strip() for part in features.split("|") if "= 1" in part]
    return EngineProbe(
        version=f"llama-cpp-python {version('llama-cpp-python')}",
        build=f"libllama {_native_version()}: {', '.join(enabled)}",
        devices=_devices(),
    )


def _native_version() -> str:
    text = lib.llama_version()
    return text.decode("utf-8", "replace") if text else "?"


def _devices() -> tuple[str, ...]:
    """ggml's device names, as this project spells them. The binding does not wrap this registry."""
    registry = lib._lib  # noqa: SLF001 - the only handle on the library's other functions
    try:
        count, get, name = (
            registry.ggml_backend_dev_count,
            registry.ggml_backend_dev_get,
            registry.ggml_backend_dev_name,
        )
    except AttributeError:
        return ("cpu",)
    count.restype = ctypes.c_size_t
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    return tuple(_spelled(name(get(index)).decode()) for index in range(count()))


def _spelled(name: str) -> str:
    """``CUDA0`` as ``cuda:0``, ``CPU`` as ``cpu``."""
    letters = name.rstrip("0123456789")
    number = name[len(letters) :]
    return f"{letters.lower()}:{number}" if number else letters.lower()
