"""NVIDIA GPUs, through the driver's management library (NVML)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from runner.api.backend import Gpu

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["gpus_of", "read_gpus"]


def read_gpus() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of this machine; none without a driver that answers. Never raises.

    All of them, in the order of their PCI addresses. Which ones a process may use
    (``CUDA_VISIBLE_DEVICES``), and in what order CUDA counts them, is the engine library's to say.
    """
    try:
        import pynvml  # noqa: PLC0415 - 20 ms that only the first reader should pay
    except ImportError:
        return ()
    return gpus_of(pynvml)


def gpus_of(nvml: ModuleType | Any) -> tuple[Gpu, ...]:
    """What ``nvml``, the module ``pynvml`` or one like it, says."""
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError, OSError):
        return ()
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        found = [_gpu(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount())]
    except (nvml.NVMLError, OSError):
        return ()
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()
    return tuple(gpu for gpu in found if gpu is not None)


def _gpu(nvml: ModuleType | Any, index: int, driver: str) -> Gpu | None:
    """One GPU; None if it is lost, or has no memory of its own to speak of."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = _text(nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        return None
    capability = ""
    with contextlib.suppress(nvml.NVMLError):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        capability = f"{major}.{minor}"
    return Gpu(
        device=f"cuda:{index}",
        name=name,
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        driver=driver,
        capability=capability,
    )


def _text(value: str | bytes) -> str:
    """Older versions of the library return bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
