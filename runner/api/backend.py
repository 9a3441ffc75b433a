"""What a backend says of itself, and what it is told about the machine.

All sizes are bytes. A *device* is a string: ``cpu`` for the machine's memory, ``cuda:0`` and so on
for a card with memory of its own.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "API_VERSION",
    "BackendInfo",
    "Budget",
    "Cpu",
    "DeviceMemory",
    "EngineProbe",
    "Gpu",
    "HardwareSupport",
    "LoadConfig",
    "Machine",
    "MachineMemory",
    "MemoryEstimate",
    "Mode",
    "NoOptions",
    "Placement",
]

#: The version of this contract. A backend declares the one it was written for.
API_VERSION = 1

#: What a backend can do with a model.
Mode = Literal["chat", "completion", "embedding", "rerank"]


class NoOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a backend that has none."""


class BackendInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A backend's declaration; a constant, computed without touching the engine library."""

    #: ``[a-z][a-z0-9._-]*``; equal to the entry point's name and to the segment in the URL.
    name: str
    #: One line for ``runner backends list``.
    description: str
    #: Other names accepted in the URL.
    aliases: tuple[str, ...] = ()
    api_version: int = API_VERSION
    #: Among the backends that can run a model, the highest rank is chosen.
    rank: int = 0
    #: Formats of weights it reads: ``gguf``, ``ggml``, ``safetensors``.
    formats: tuple[str, ...] = ()
    modes: tuple[Mode, ...] = ("chat", "completion")
    #: One documented Struct, every field with a default; config and CLI are made from it.
    options: type[msgspec.Struct] = NoOptions
    #: Environment variables its worker may see, beside the few that every worker gets.
    environment: tuple[str, ...] = ()


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """The processor, as far as it matters to engines."""

    model: str
    arch: str
    #: Processors this process may run on (affinity and cgroup quota counted in).
    n_usable: int
    #: Lower-case feature flags that engines care about: ``avx2``, ``avx512f``, ``neon`` …
    features: tuple[str, ...] = ()


class MachineMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's memory; a cgroup limit counts as its size."""

    total_bytes: int
    available_bytes: int


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A card with memory of its own."""

    #: The device name used in estimates, such as ``cuda:0``.
    device: str
    name: str
    total_bytes: int
    free_bytes: int
    driver: str = ""
    #: For CUDA: compute capability, such as ``8.9``.
    capability: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What this machine has."""

    os: str
    cpu: Cpu
    memory: MachineMemory
    gpus: tuple[Gpu, ...] = ()


class EngineProbe(msgspec.Struct, frozen=True, kw_only=True):
    """What only the engine library knows; asked in a short-lived child process."""

    #: The library's version, such as ``llama-cpp-python 0.3.36``.
    version: str
    #: Build facts, such as a commit or compiled-in features.
    build: str = ""
    #: Devices the library itself sees.
    devices: tuple[str, ...] = ()


class HardwareSupport(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a backend can work on this machine."""

    is_supported: bool
    devices: tuple[str, ...] = ()
    #: In words, for people: why not, or what will be used.
    reason: str = ""


class LoadConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a model was asked to be loaded. None is *auto*: the estimate chooses."""

    #: Most tokens of one sequence.
    context_size: int | None = None
    #: Sequences that may be decoded together.
    max_sequences: int | None = None
    #: An instance of the backend's ``BackendInfo.options``.
    options: msgspec.Struct = NoOptions()


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a load may use: bytes by device."""

    devices: dict[str, int]


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What *auto* resolved to; decided by the estimate and obeyed by the load."""

    #: Most tokens of one sequence.
    context_size: int
    #: Tokens the KV cache holds in all, shared by the sequences.
    kv_cells: int
    max_sequences: int
    #: Layers on a GPU; 0 is all on the CPU.
    gpu_layers: int = 0


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes on one device, by kind."""

    device: str
    weights: int = 0
    kv: int = 0
    compute: int = 0
    process: int = 0

    @property
    def total(self) -> int:
        """The sum of all kinds."""
        return self.weights + self.kv + self.compute + self.process


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a load will need, and the placement it was computed for."""

    devices: tuple[DeviceMemory, ...]
    placement: Placement
    #: How the context and the placement were chosen, in a sentence.
    reason: str = ""

    def by_device(self) -> dict[str, int]:
        """Total bytes by device."""
        return {memory.device: memory.total for memory in self.devices}
