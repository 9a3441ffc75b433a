"""A backend without a model, for tests: it says what its options or the prompt tell it to.

It is a plugin module like any other (see :func:`runner.testing.distribution.install_fake`),
batches all its requests one token per step, and is never an entry point of Runner itself. A prompt
(or the last message of a chat) that is exactly one of these steers it:

==================  ==============================================================
``say N words``     answers with N words
``crash``           the process aborts at the first token
``hang``            the engine's step never returns
``refuse``          ``submit`` raises a ``RequestError``
``bug``             ``submit`` raises something that is no ``RunnerError``
==================  ==============================================================
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Literal

import msgspec

from runner.api.backend import (
    BackendInfo,
    DeviceMemory,
    EngineProbe,
    HardwareSupport,
    MemoryEstimate,
    Placement,
)
from runner.api.hooks import hookimpl
from runner.api.model import Model, ModelHeader

if TYPE_CHECKING:
    from runner.api.backend import LoadConfig, Machine
    from runner.api.engine import Engine, LoadReport

__all__ = ["FakeOptions", "fake_model"]


class FakeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the fake behaves."""

    #: What it answers, token by token.
    tokens: tuple[str, ...] = ("Hello", ",", " world", "!")
    #: Answer with the prompt's own words instead.
    echo: bool = False
    #: Seconds per step.
    delay_s: float = 0.0
    #: Seconds the load takes, reporting progress.
    load_s: float = 0.0
    #: Raise this when loading.
    fail_load: str = ""
    #: Never come back from there.
    hang_at: Literal["", "load", "step", "stop"] = ""
    #: Abort the process after so many tokens in all.
    crash_after: int | None = None
    #: Bytes written to stderr in each step.
    chatter_bytes: int = 0
    #: What the estimate says, besides the size of the weights.
    memory_bytes: int = 16 * 2**20
    #: Length of an embedding vector.
    n_embd: int = 8


def fake_model(name: str = "test/fake", *, file_bytes: int = 1024) -> Model:
    """A model for the fake: a header and no files."""
    header = ModelHeader(
        format="gguf",
        version=3,
        architecture="fake",
        metadata={"fake.context_length": 4096},
        tensors=(),
        file_bytes=file_bytes,
    )
    return Model(id=f"sha256:{hashlib.sha256(name.encode()).hexdigest()}", name=name, header=header)


@hookimpl
def runner_backend_info() -> BackendInfo:
    """Claims every GGUF model, at the lowest rank."""
    return BackendInfo(
        name="fake",
        description="A backend without a model, for tests",
        rank=-100,
        formats=("gguf",),
        modes=("chat", "completion", "embedding"),
        options=FakeOptions,
    )


@hookimpl
def runner_probe_engine() -> EngineProbe:
    """There is no library to ask."""
    return EngineProbe(version="fake 1.0", build="scripted", devices=("cpu",))


@hookimpl
def runner_hardware_support(machine: Machine, probe: EngineProbe) -> HardwareSupport:
    """Runs everywhere."""
    return HardwareSupport(
        is_supported=True, devices=probe.devices, reason=f"{probe.version} runs on {machine.os}"
    )


@hookimpl
def runner_estimate_memory(model: Model, config: LoadConfig) -> MemoryEstimate:
    """The size of the weights, and what the options say."""
    options = config.options
    assert isinstance(options, FakeOptions)
    context_size = config.context_size or model.header.context_length or 4096
    max_sequences = config.max_sequences or 4
    return MemoryEstimate(
        devices=(
            DeviceMemory(
                device="cpu", weights=model.header.file_bytes, process=options.memory_bytes
            ),
        ),
        placement=Placement(
            context_size=context_size,
            kv_cells=context_size * max_sequences,
            max_sequences=max_sequences,
        ),
        reason="as the options say",
    )


@hookimpl
def runner_load_model(
    model: Model, config: LoadConfig, placement: Placement, report: LoadReport
) -> Engine:
    """Takes the time it was told to take, or fails as it was told to."""
    from runner.testing.script import FakeEngine, hang  # noqa: PLC0415 - as real backends do it

    options = config.options
    assert isinstance(options, FakeOptions)
    report.log(f"loading {model.name}")
    if options.hang_at == "load":
        hang()
    n_parts = 10
    for part in range(n_parts):
        report.progress(part / n_parts, "loading")
        time.sleep(options.load_s / n_parts)
    if options.fail_load:
        raise RuntimeError(options.fail_load)
    report.progress(1.0)
    return FakeEngine(options, placement)


@hookimpl
def runner_unload_model(engine: Engine) -> None:
    """Lets the engine hang here if its options say so."""
    from runner.testing.script import FakeEngine  # noqa: PLC0415 - as real backends do it

    assert isinstance(engine, FakeEngine)
    engine.close()
