"""A model as a backend sees it: a header that was read once, and files to load.

The header is a view of the weights file's metadata and tensor table. It is parsed when a model
enters the store, checked against the real size of the file, and kept by digest, so hooks that only
estimate never open a file.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "ArraySummary",
    "FileRole",
    "MetadataValue",
    "Model",
    "ModelFile",
    "ModelHeader",
    "TensorInfo",
]

#: What a file is to the model.
FileRole = Literal["weights", "projector", "chat_template", "license"]


class ArraySummary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="array"):
    """Stands for a metadata array that is too long to keep (a vocabulary, merges)."""

    element: str
    length: int


MetadataValue = bool | int | float | str | list[bool | int | float | str] | ArraySummary


class TensorInfo(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, array_like=True
):
    """One tensor of the weights file."""

    name: str
    #: Elements per dimension, fastest-changing first (GGUF's order).
    shape: tuple[int, ...]
    #: The format's own name for the element type, such as ``Q4_K`` or ``F16``.
    dtype: str
    size_bytes: int


class ModelHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metadata and tensor table of a weights file."""

    #: ``gguf``, ``ggml`` or ``safetensors``.
    format: str
    version: int
    architecture: str
    metadata: dict[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    #: Size of the weights file.
    file_bytes: int

    def integer(self, key: str, default: int = 0) -> int:
        """The metadata value ``<architecture>.<key>`` as an int; ``default`` if it is no number."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        return int(value) if isinstance(value, int | float) else default

    def array_length(self, key: str) -> int:
        """How many elements the metadata array ``key`` has; 0 when there is none."""
        value = self.metadata.get(key)
        if isinstance(value, ArraySummary):
            return value.length
        return len(value) if isinstance(value, list) else 0

    @property
    def context_length(self) -> int:
        """Tokens the model was trained for; 0 when the header does not say."""
        return self.integer("context_length")

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a model, where it lies in the store."""

    role: FileRole
    path: str
    digest: str
    size_bytes: int


class Model(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model, ready to be estimated and loaded."""

    #: Digest of the manifest, ``sha256:<64 hex>``.
    id: str
    #: What people call it, for messages: ``ai/smollm2``.
    name: str
    header: ModelHeader
    #: Weights in the order of their shards. Empty when the model is only known by its header.
    files: tuple[ModelFile, ...] = ()

    @property
    def format(self) -> str:
        """The format of its weights, as backends declare it."""
        return self.header.format

    def paths(self, role: FileRole) -> tuple[str, ...]:
        """The paths of all files of one role."""
        return tuple(file.path for file in self.files if file.role == role)
