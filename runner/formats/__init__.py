"""Bounds-checked readers for the headers of model files.

They read metadata and tensor tables, never weights, and are safe to run in the daemon on files
from anywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.api.errors import ModelFileError
from runner.formats import gguf
from runner.formats.signatures import PROBE_BYTES, looks_like
from runner.formats.window import open_window

if TYPE_CHECKING:
    from pathlib import Path

    from runner.api.model import ModelHeader

__all__ = ["read_model_header"]


def read_model_header(path: Path) -> ModelHeader:
    """Read the header of a model file of any known format.

    :raises ModelFileError: it is no model that can be read; the message says what it looks like.
    """
    with open_window(path) as window:
        head = window.take(min(PROBE_BYTES, window.size_bytes), "its beginning")
    if head.startswith(b"GGUF"):
        return gguf.read_header(path)
    raise ModelFileError(
        f"{path.name}: is not a model that can be run but looks like {looks_like(head)}"
    )
