"""The hooks of the backend ``shout``: everything Runner needs to know about it."""

from runner.api import (
    BackendInfo,
    DeviceMemory,
    Engine,
    EngineProbe,
    HardwareSupport,
    LoadConfig,
    MemoryEstimate,
    Model,
    Placement,
    hookimpl,
)


@hookimpl
def runner_backend_info() -> BackendInfo:
    """Declare the backend; the name is the one in pyproject.toml and in the URL."""
    return BackendInfo(name="shout", description="Says it louder.", formats=("gguf",))


@hookimpl
def runner_probe_engine() -> EngineProbe:
    """Ask the engine library for its version; here there is no library."""
    return EngineProbe(version="shout 1.0")


@hookimpl
def runner_hardware_support() -> HardwareSupport:
    """Any machine will do."""
    return HardwareSupport(is_supported=True, devices=("cpu",))


@hookimpl
def runner_estimate_memory(model: Model, config: LoadConfig) -> MemoryEstimate:
    """Say what a load takes, and choose what the user left open."""
    context_size = config.context_size or model.header.context_length or 2048
    return MemoryEstimate(
        devices=(DeviceMemory(device="cpu", process=64 * 2**20),),
        placement=Placement(context_size=context_size, kv_cells=context_size, max_sequences=1),
        reason="one Python process; the weights are not read",
    )


@hookimpl
def runner_load_model(placement: Placement) -> Engine:
    """Make the engine; in a worker process, so this is the place for heavy imports."""
    from runner_shout.engine import ShoutEngine

    return ShoutEngine(placement.context_size)
