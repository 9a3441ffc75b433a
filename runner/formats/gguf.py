"""The header of a GGUF file: metadata and tensor table, checked against the file's real size.

Versions 2 and 3, little-endian. Files come from strangers, and the daemon itself reads them, so
every count, length, dimension and offset is checked before anything is allocated or skipped by it,
and reading costs time and memory in proportion to what the file really holds, up to fixed limits.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from runner.api.model import ArraySummary, MetadataValue, ModelHeader, TensorInfo
from runner.formats.ggml_types import RETIRED_TYPES, TENSOR_TYPES
from runner.formats.signatures import PROBE_BYTES, looks_like
from runner.formats.window import open_window

if TYPE_CHECKING:
    from pathlib import Path

    from runner.formats.window import FileWindow

__all__ = ["MAX_KEPT_ELEMENTS", "read_header"]

#: Arrays with more elements than this become an ``ArraySummary``.
MAX_KEPT_ELEMENTS = 1024

_MAX_METADATA = 2**16
#: The largest mixtures of experts with one tensor per expert have some 50,000.
_MAX_TENSORS = 2**17
_MAX_KEY_BYTES = 2**16 - 1
#: Chat templates, the longest strings that are kept, have up to some 100 KB.
_MAX_STRING_BYTES = 2**20
_MAX_NAME_BYTES = 1024
#: All strings that are kept, together.
_MAX_KEPT_BYTES = 32 * 2**20
#: Strings of arrays that are walked, together; the largest vocabularies have 260,000 tokens.
_MAX_WALKED_STRINGS = 2**22
_MAX_ARRAY_DEPTH = 4
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**63 - 1
_MAX_ALIGNMENT = 2**16
_DEFAULT_ALIGNMENT = 32

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PREAMBLE = struct.Struct("<4sIQQ")
_ARRAY = struct.Struct("<IQ")
_TENSOR_TAIL = struct.Struct("<IQ")

_STRING, _LIST = 8, 9
#: Type number -> name and layout, for the types of fixed size.
_SCALARS = {
    0: ("uint8", struct.Struct("<B")),
    1: ("int8", struct.Struct("<b")),
    2: ("uint16", struct.Struct("<H")),
    3: ("int16", struct.Struct("<h")),
    4: ("uint32", struct.Struct("<I")),
    5: ("int32", struct.Struct("<i")),
    6: ("float32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<?")),
    10: ("uint64", struct.Struct("<Q")),
    11: ("int64", struct.Struct("<q")),
    12: ("float64", struct.Struct("<d")),
}
#: Arrays as long as the vocabulary: summaries even where the vocabulary is small.
_VOCABULARY = frozenset(
    f"tokenizer.ggml.{part}" for part in ("tokens", "token_type", "scores", "merges")
)


def read_header(path: Path) -> ModelHeader:
    """Read the header of the GGUF file at ``path``.

    :raises ModelFileError: it is no GGUF file that can be read, or damaged, or hostile; the message
        says what is wrong, and at which byte.
    """
    with open_window(path) as window:
        return _HeaderReader(window).read()


class _HeaderReader:
    """Reads one file from its beginning; used once."""

    def __init__(self, window: FileWindow) -> None:
        self._window = window
        self._kept_bytes = 0
        self._walked_strings = 0

    def read(self) -> ModelHeader:
        window = self._window
        version, n_tensors, n_metadata = self._preamble()
        metadata: dict[str, MetadataValue] = {}
        for index in range(n_metadata):
            at = window.position
            key = self._string(f"the key of metadata entry {index}", _MAX_KEY_BYTES)
            if key in metadata:
                window.fail(f"the metadata key {key!r} occurs twice", at=at)
            metadata[key] = self._value(key)
        alignment = self._alignment(metadata)
        tensors = self._tensors(n_tensors, alignment)
        architecture = metadata.get("general.architecture", "")
        if not isinstance(architecture, str):
            window.fail("the metadata value of general.architecture is not a string", at=0)
        return ModelHeader(
            format="gguf",
            version=version,
            architecture=architecture,
            metadata=metadata,
            tensors=tensors,
            file_bytes=window.size_bytes,
        )

    def _preamble(self) -> tuple[int, int, int]:
        """Magic and counts: version, number of tensors, number of metadata entries."""
        window = self._window
        head = window.take(min(PROBE_BYTES, window.size_bytes), "its beginning")
        if not head.startswith(b"GGUF"):
            window.fail(f"is not a GGUF model but looks like {looks_like(head)}", at=0)
        window.position = 0
        _, version, n_tensors, n_metadata = window.unpack(_PREAMBLE, "the GGUF preamble")
        if version & 0xFFFF == 0 and version:
            window.fail("is a big-endian GGUF model; only little-endian ones can be read", at=4)
        if version < 2:
            window.fail(f"has GGUF version {version}; convert it to version 3", at=4)
        if version > 3:
            window.fail(f"has GGUF version {version}; versions 2 and 3 are known", at=4)
        # The least a tensor takes: lengths, type and offset. The same for a metadata entry.
        self._check_count("tensors", n_tensors, limit=_MAX_TENSORS, min_bytes=24, at=8)
        self._check_count("metadata entries", n_metadata, limit=_MAX_METADATA, min_bytes=13, at=16)
        return version, n_tensors, n_metadata

    def _check_count(self, what: str, count: int, *, limit: int, min_bytes: int, at: int) -> None:
        if count > limit:
            self._window.fail(f"claims {count} {what}, more than the {limit} allowed", at=at)
        if count * min_bytes > self._window.remaining:
            self._window.fail(f"claims {count} {what}, more than the file has room for", at=at)

    def _string(self, what: str, limit: int = _MAX_STRING_BYTES) -> str:
        window = self._window
        at = window.position
        (length,) = window.unpack(_U64, what)
        if length > window.remaining:
            window.fail(f"{what} claims {length} bytes where {window.remaining} are left", at=at)
        if length > limit:
            window.fail(f"{what} has {length} bytes, more than the {limit} allowed", at=at)
        self._kept_bytes += length
        if self._kept_bytes > _MAX_KEPT_BYTES:
            window.fail(f"its strings have more than the {_MAX_KEPT_BYTES} bytes allowed", at=at)
        try:
            return window.take(length, what).decode()
        except UnicodeDecodeError as exc:
            window.fail(f"{what} is not UTF-8", at=at + _U64.size + exc.start)

    def _value(self, key: str) -> MetadataValue:
        what = f"the metadata value of {key!r}"
        (kind,) = self._window.unpack(_U32, f"the type of {what}")
        if kind == _STRING:
            return self._string(what)
        if kind == _LIST:
            return self._array(what, is_kept=key not in _VOCABULARY, depth=1)
        if kind not in _SCALARS:
            self._window.fail(f"{what} has the unknown type {kind}", at=self._window.position - 4)
        value: MetadataValue = self._window.unpack(_SCALARS[kind][1], what)[0]
        return value

    def _array(self, what: str, *, is_kept: bool, depth: int) -> MetadataValue:
        window = self._window
        at = window.position
        if depth > _MAX_ARRAY_DEPTH:
            window.fail(f"{what} nests arrays more than {_MAX_ARRAY_DEPTH} deep")
        kind, length = window.unpack(_ARRAY, f"the type and length of {what}")
        is_kept = is_kept and length <= MAX_KEPT_ELEMENTS
        if kind == _STRING:
            self._walk(what, length, at=at)
            if is_kept:
                return [self._string(f"element {index} of {what}") for index in range(length)]
            window.skip_strings(length, what)
            return ArraySummary("string", length)
        if kind == _LIST:
            self._walk(what, length, at=at)
            for index in range(length):
                self._array(f"element {index} of {what}", is_kept=False, depth=depth + 1)
            return ArraySummary("array", length)
        if kind not in _SCALARS:
            window.fail(f"{what} is an array of the unknown type {kind}", at=at)
        name, layout = _SCALARS[kind]
        if length * layout.size > window.remaining:
            window.fail(f"{what} claims {length} elements, more than the file has room for", at=at)
        if not is_kept:
            window.skip(length * layout.size, what)
            return ArraySummary(name, length)
        return list(window.unpack(struct.Struct(f"<{length}{layout.format[1:]}"), what))

    def _walk(self, what: str, length: int, *, at: int) -> None:
        """Bound the elements that have to be looked at one by one, since each has a length."""
        self._walked_strings += length
        if self._walked_strings > _MAX_WALKED_STRINGS:
            self._window.fail(
                f"{what} claims {length} elements, more than the {_MAX_WALKED_STRINGS} allowed",
                at=at,
            )
        if length * _U64.size > self._window.remaining:
            self._window.fail(
                f"{what} claims {length} elements, more than the file has room for", at=at
            )

    def _alignment(self, metadata: dict[str, MetadataValue]) -> int:
        value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not 0 < value <= _MAX_ALIGNMENT
            or value & (value - 1)
        ):
            self._window.fail(
                f"the metadata value of general.alignment is {value!r}, "
                f"which is no power of two up to {_MAX_ALIGNMENT}",
                at=0,
            )
        return value

    def _tensors(self, count: int, alignment: int) -> tuple[TensorInfo, ...]:
        """The tensor table, then where its data lies, which begins after the table's end."""
        window = self._window
        tensors: dict[str, TensorInfo] = {}
        extents: list[tuple[int, int, str]] = []
        for index in range(count):
            at = window.position
            name = self._string(f"the name of tensor {index}", _MAX_NAME_BYTES)
            if name in tensors:
                window.fail(f"the tensor {name!r} occurs twice", at=at)
            tensor, offset = self._tensor(name)
            if offset % alignment:
                window.fail(
                    f"the tensor {name!r} has offset {offset}, which is not aligned to {alignment}",
                    at=at,
                )
            tensors[name] = tensor
            extents.append((offset, tensor.size_bytes, name))
        self._check_extents(extents, data_start=-(-window.position // alignment) * alignment)
        return tuple(tensors.values())

    def _tensor(self, name: str) -> tuple[TensorInfo, int]:
        window = self._window
        what = f"the entry of tensor {name!r}"
        at = window.position
        (n_dimensions,) = window.unpack(_U32, what)
        if n_dimensions > _MAX_DIMENSIONS:
            window.fail(
                f"{what} has {n_dimensions} dimensions; {_MAX_DIMENSIONS} are allowed", at=at
            )
        shape: tuple[int, ...] = window.unpack(struct.Struct(f"<{n_dimensions}Q"), what)
        n_elements = math.prod(shape)
        if max(shape, default=0) > _MAX_ELEMENTS or n_elements > _MAX_ELEMENTS:
            window.fail(f"{what} has the impossible shape {list(shape)}", at=at)
        at = window.position
        number, offset = window.unpack(_TENSOR_TAIL, what)
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            if number in RETIRED_TYPES:
                window.fail(
                    f"{what} has the type {RETIRED_TYPES[number]}, which was retired", at=at
                )
            window.fail(f"{what} has the unknown type {number}", at=at)
        if (shape[0] if shape else 1) % kind.block:
            window.fail(
                f"{what} has rows of {shape[0] if shape else 1} elements, "
                f"no multiple of the {kind.block} in a block of {kind.name}",
                at=at,
            )
        size_bytes = n_elements // kind.block * kind.block_bytes
        return TensorInfo(name=name, shape=shape, dtype=kind.name, size_bytes=size_bytes), offset

    def _check_extents(self, extents: list[tuple[int, int, str]], *, data_start: int) -> None:
        window = self._window
        end_before, before = 0, ""
        for offset, size_bytes, name in sorted(extents):
            start = data_start + offset
            if start + size_bytes > window.size_bytes:
                window.fail(
                    f"the data of tensor {name!r} would end at byte {start + size_bytes}, "
                    "past the end of the file: is the download complete?",
                    at=min(start, window.size_bytes),
                )
            if size_bytes and offset < end_before:
                window.fail(f"the data of tensors {before!r} and {name!r} overlap", at=start)
            end_before, before = max(end_before, offset + size_bytes), name
