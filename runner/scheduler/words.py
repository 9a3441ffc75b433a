"""The scheduler's sentences: refusals with their sums, and what a waiting request is told."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from runner.api.errors import CapacityError, ModelTooLarge, QueueFull

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runner.api.backend import MemoryEstimate
    from runner.scheduler.state import Record, WaitReason

__all__ = ["format_bytes", "note", "pinned_error", "queue_full_error", "too_large_error"]

_WAITING: dict[WaitReason, str] = {
    "": "waiting for memory",
    "behind": "waiting for memory, behind earlier requests",
    "unloading": "waiting for idle models to unload",
    "busy": "waiting for memory that models in use hold",
    "closing": "waiting for models in use to finish and unload",
    "loading": "waiting for memory while other models load",
}


def format_bytes(size: int) -> str:
    """``9.1 GiB`` from one GiB on, else ``512 MiB``; rounded up, so that small is never zero."""
    if size >= 2**30:
        return f"{ceil(size / 2**30 * 10) / 10:.1f} GiB"
    return f"{ceil(size / 2**20)} MiB"


def note(record: Record) -> str:
    """What is happening to a worker now, for people who wait for it."""
    match record.phase:
        case "estimating":
            return "estimating memory"
        case "waiting":
            return _WAITING[record.wait]
        case "loading":
            percent = (
                "" if record.progress is None else f" {record.progress:.0%}".replace("%", " %")
            )
            return f"loading{percent}" + (
                f": {record.progress_note}" if record.progress_note else ""
            )
        case "ready":
            return "ready"
        case _:
            return "closing"


def too_large_error(claim: Record, capacity: Mapping[str, int], device: str) -> ModelTooLarge:
    """The refusal of a claim that ``device`` can never hold."""
    name, needs = claim.spec.model.name, claim.need[device]
    if device not in capacity:
        has = ", ".join(sorted(capacity)) or "none"
        return ModelTooLarge(
            f"{name} needs {format_bytes(needs)} on {device}, and this machine has no such device "
            f"(it has: {has})"
        )
    return ModelTooLarge(
        f"{name} needs {format_bytes(needs)} of {device} memory{_parts(claim.estimate, device)}, "
        f"and models may use {format_bytes(capacity[device])} there: "
        f"{_advice(claim.estimate, capacity[device], device)}"
    )


def _parts(estimate: MemoryEstimate | None, device: str) -> str:
    if estimate is None:
        return ""
    parts = [
        f"{label} {format_bytes(size)}"
        for memory in estimate.devices
        if memory.device == device
        for label, size in (
            ("weights", memory.weights),
            ("KV cache", memory.kv),
            ("compute", memory.compute),
            ("process", memory.process),
        )
        if size
    ]
    return f" ({', '.join(parts)})" if parts else ""


def _advice(estimate: MemoryEstimate | None, capacity: int, device: str) -> str:
    """What would help, with a number where one can be computed."""
    limit = "; so would a larger memory limit (memory_limit_bytes)" if device == "cpu" else ""
    if estimate is not None:
        kv = sum(memory.kv for memory in estimate.devices if memory.device == device)
        fixed = sum(memory.total for memory in estimate.devices if memory.device == device) - kv
        cells = estimate.placement.kv_cells
        fitting = cells * (capacity - fixed) // kv if kv and fixed < capacity else 0
        if fitting >= 256:
            return (
                f"a KV cache of {fitting // 256 * 256} tokens instead of {cells} would fit "
                f"(set a smaller context_size or fewer max_sequences){limit}"
            )
        if fixed > capacity:
            over = format_bytes(fixed - capacity)
            return f"a quantization of the model that is at least {over} smaller would help{limit}"
    return f"a smaller model or quantization would help{limit}"


def pinned_error(
    claim: Record, capacity: Mapping[str, int], pinned: Sequence[Record]
) -> CapacityError:
    """The refusal of a claim that only pinned workers stand in the way of."""
    needs = ", ".join(
        f"{format_bytes(size)} on {device}" for device, size in sorted(claim.need.items())
    )
    has = ", ".join(
        f"{format_bytes(capacity.get(device, 0))} on {device}" for device in sorted(claim.need)
    )
    holders = ", ".join(
        f"{worker.spec.model.name} ({format_bytes(sum(worker.need.get(d, 0) for d in claim.need))})"
        for worker in pinned
    )
    return CapacityError(
        f"{claim.spec.model.name} needs {needs}; of the {has} that models may use, "
        f"pinned models hold too much: {holders}. Unload one of them"
    )


def queue_full_error(n_waiting: int) -> QueueFull:
    """The refusal of a lease that would have to wait."""
    return QueueFull(
        f"{n_waiting} requests wait for a model already, which is the limit (queue_limit): "
        "try again later"
    )
