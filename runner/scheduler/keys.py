"""The identity of a worker."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from runner.api.backend import LoadConfig

__all__ = ["load_key"]


def load_key(backend: str, backend_version: str, model_id: str, config: LoadConfig) -> str:
    """Hash what was *requested*: two requests with equal keys can share a worker.

    *Auto* stays auto here; what it resolves to depends on the machine's state at the time of the
    load and would split equal requests over two workers.
    """
    options = msgspec.to_builtins(config.options, order="sorted", enc_hook=str)
    requested = (config.context_size, config.max_sequences, options)
    content = msgspec.json.encode((backend, backend_version, model_id, requested), order="sorted")
    return hashlib.sha256(content).hexdigest()
