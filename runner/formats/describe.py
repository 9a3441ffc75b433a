"""What people want to know of a model at a glance: its size, parameters and quantization."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from runner.formats.ggml_types import FILE_TYPES

if TYPE_CHECKING:
    from runner.api.model import ModelHeader

__all__ = ["format_parameters", "format_size", "parameter_count", "quantization"]

#: Set in ``general.file_type`` by tools that guessed it from the tensors.
_GUESSED = 1024


def parameter_count(header: ModelHeader) -> int:
    """The elements of all tensors; tied embeddings count once, as they are stored."""
    return sum(math.prod(tensor.shape) for tensor in header.tensors)


def quantization(header: ModelHeader) -> str:
    """The name of the quantization, such as ``Q4_K_M``.

    Without a known ``general.file_type`` it is the type that most of the weights' bytes have, and
    ``unknown`` for a file without tensors.
    """
    file_type = header.metadata.get("general.file_type")
    if isinstance(file_type, int) and (name := FILE_TYPES.get(file_type & ~_GUESSED)):
        return name
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    return sizes.most_common(1)[0][0] if sizes else "unknown"


def format_parameters(count: int) -> str:
    """A number of parameters for people: ``361.82M``."""
    return _scaled(count, 1000, ("", "K", "M", "B", "T"))


def format_size(size_bytes: int) -> str:
    """A size for people: ``256.35MiB``."""
    return _scaled(size_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(value: int, base: int, units: tuple[str, ...]) -> str:
    if value < base:
        return f"{value}{units[0]}"
    scaled = float(value)
    for unit in units[1:]:
        scaled /= base
        # What would be printed as 1000.00K is 1.00M.
        if round(scaled, 2) < base or unit == units[-1]:
            break
    return f"{scaled:.2f}{unit}"
