"""What is not a model is refused with what it seems to be."""

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.errors import ModelFileError
from runner.formats import read_model_header
from runner.formats.gguf import read_header
from runner.formats.signatures import looks_like


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.gguf"))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98362432\n"
SAFETENSORS = struct.pack("<Q", 60) + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'

CASES = {
    b"": "an empty file",
    LFS: "a Git LFS pointer",
    SAFETENSORS: "a safetensors model",
    struct.pack("<I", 0x67676D6C) + bytes(60): "an old GGML model (unversioned)",
    struct.pack("<I", 0x67676A74) + bytes(60): "an old GGML model (ggjt)",
    struct.pack("<I", 0x67676D66) + bytes(60): "an old GGML model (ggmf)",
    gzip.compress(b"x"): "a gzip archive",
    _zip(): "a zip archive",
    _tar(): "a tar archive",
    b"<!DOCTYPE html><html>": "a web page",
    b'{"error": "not found"}': "JSON text",
    b"just some words\n" * 100: "text",
    ("é" * 600).encode(): "text",
    b"x" + "é".encode() * 600: "text",
    bytes(600): "zeros",
    b"\x00\x01\x02\xff\xfe": "unknown data (it begins with 00 01 02 ff fe)",
}


@pytest.mark.parametrize(("data", "description"), CASES.items(), ids=CASES.values())
def test_a_file_that_is_no_model_is_named(tmp_path: Path, data: bytes, description: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    for read in (read_model_header, read_header):
        with pytest.raises(ModelFileError) as caught:
            read(path)
        assert f"looks like {description}" in caught.value.message


@given(st.binary(max_size=600))
def test_any_beginning_has_a_description(head: bytes) -> None:
    assert looks_like(head)
