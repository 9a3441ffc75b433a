"""What a file seems to be, from its first bytes: for the message when it is not a model."""

from __future__ import annotations

import codecs

__all__ = ["PROBE_BYTES", "looks_like"]

#: How much of the beginning of a file :func:`looks_like` wants.
PROBE_BYTES = 512

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF model"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, not the model itself: fetch it with `git lfs pull`",
    ),
    (b"lmgg", "an old GGML model (unversioned), which was the format before GGUF"),
    (b"fmgg", "an old GGML model (ggmf), which was the format before GGUF"),
    (b"tjgg", "an old GGML model (ggjt), which was the format before GGUF"),
    (b"algg", "an old GGML LoRA adapter, which was the format before GGUF"),
    (b"PK\x03\x04", "a zip archive (PyTorch checkpoints are zip archives too)"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive: unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive: unpack it first"),
    (b"BZh", "a bzip2 archive: unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive: unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x02", "a Python pickle (an old PyTorch checkpoint?)"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a Windows program"),
    (b"\x89PNG", "a PNG image"),
    (b"%PDF", "a PDF document"),
)


def looks_like(head: bytes) -> str:
    """In words, what a file that begins with ``head`` seems to be."""
    if not head:
        return "an empty file"
    for magic, description in _SIGNATURES:
        if head.startswith(magic):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    if _is_safetensors(head):
        return "a safetensors model, which this version cannot run"
    if not any(head):
        return "zeros (an unfinished download?)"
    return _kind_of_text(head) or f"unknown data (it begins with {head[:8].hex(' ')})"


def _is_safetensors(head: bytes) -> bool:
    """The size of a JSON header as a little-endian u64, then that header."""
    return head[8:10] in {b'{"', b"{ "} and int.from_bytes(head[:8], "little") < 2**30


def _kind_of_text(head: bytes) -> str:
    try:
        # Not the end of the data: a character may be cut there.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return ""
    if any(char < " " and char not in "\t\n\r\f" for char in text):
        return ""
    start = text.lstrip("\ufeff \t\r\n").lower()
    if start.startswith(("<!doctype html", "<html")):
        return "a web page (an error page instead of a download?)"
    if start.startswith(("{", "[")):
        return "JSON text"
    return "text"
