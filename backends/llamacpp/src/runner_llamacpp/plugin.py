"""The hooks of the backend llama.cpp. Importing this loads no native library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.api import BackendInfo, EngineProbe, HardwareSupport, hookimpl
from runner_llamacpp.memory import estimate_memory
from runner_llamacpp.options import LlamaCppOptions

if TYPE_CHECKING:
    from runner.api import (
        Budget,
        Engine,
        LoadConfig,
        LoadReport,
        Machine,
        MemoryEstimate,
        Model,
        Placement,
    )

#: What its kernels are compiled for, best first; any 64-bit processor will do.
_CPU_FEATURES = (
    "amx_int8",
    "avx512f",
    "avx512_vnni",
    "avx2",
    "fma",
    "f16c",
    "avx",
    "sve",
    "neon",
    "asimd",
)
_ARCHITECTURES = frozenset({"x86_64", "amd64", "aarch64", "arm64"})

_INFO = BackendInfo(
    name="llama.cpp",
    description="GGUF models, with continuous batching (llama-cpp-python)",
    aliases=("llamacpp",),
    rank=100,
    formats=("gguf",),
    modes=("chat", "completion", "embedding"),
    options=LlamaCppOptions,
    environment=(
        "CUDA_VISIBLE_DEVICES",
        "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
        "GGML_VK_VISIBLE_DEVICES",
        "GOMP_CPU_AFFINITY",
        "GOMP_SPINCOUNT",
        "HIP_VISIBLE_DEVICES",
        "LLAMA_CPP_LIB_PATH",
        "OMP_NUM_THREADS",
        "OMP_PLACES",
        "OMP_PROC_BIND",
        "OMP_WAIT_POLICY",
    ),
)


@hookimpl
def runner_backend_info() -> BackendInfo:
    """The declaration."""
    return _INFO


@hookimpl
def runner_probe_engine() -> EngineProbe:
    """Versions, compiled-in features, and the devices that the native library sees."""
    from runner_llamacpp.probe import probe_engine  # noqa: PLC0415 - it loads the native library

    return probe_engine()


@hookimpl
def runner_hardware_support(machine: Machine, probe: EngineProbe) -> HardwareSupport:
    """Any 64-bit processor; says which of its features help."""
    if machine.cpu.arch.lower() not in _ARCHITECTURES:
        return HardwareSupport(
            is_supported=False,
            reason=f"{machine.cpu.arch} processors are not supported; it runs on x86-64 and arm64",
        )
    features = [name for name in _CPU_FEATURES if name in machine.cpu.features]
    words = f"{machine.cpu.n_usable} CPU threads"
    words += f" with {', '.join(features)}" if features else ", without vector extensions"
    others = [device for device in probe.devices if device != "cpu"]
    if others:
        words += f"; {', '.join(others)} seen, but models are placed on the CPU"
    elif machine.gpus:
        words += "; this build of llama.cpp cannot use the GPU"
    return HardwareSupport(is_supported=True, devices=("cpu",), reason=words)


@hookimpl
def runner_estimate_memory(
    model: Model, config: LoadConfig, machine: Machine, budget: Budget
) -> MemoryEstimate:
    """Weights, KV cache, compute buffers and process, from the header."""
    return estimate_memory(model.header, config, machine, budget)


@hookimpl
def runner_load_model(
    model: Model, config: LoadConfig, placement: Placement, report: LoadReport
) -> Engine:
    """Load the model; from here on the native library is in this process."""
    from runner_llamacpp.loading import open_engine  # noqa: PLC0415 - it loads the native library

    options = config.options
    if not isinstance(options, LlamaCppOptions):
        options = LlamaCppOptions()
    return open_engine(model, options, placement, report)


@hookimpl
def runner_unload_model(engine: Engine) -> None:
    """Free contexts and weights."""
    close = getattr(engine, "close", None)
    if close is not None:
        close()
