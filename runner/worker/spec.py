"""What a worker is asked to load."""

from __future__ import annotations

from typing import Any

import msgspec

from runner.api.backend import Placement
from runner.api.model import Model

__all__ = ["WorkerSpec"]


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model for one backend; everything the child needs to call ``runner_load_model``."""

    backend: str
    model: Model
    #: As asked for, like in :class:`~runner.api.LoadConfig`; None was left to the estimate.
    context_size: int | None = None
    max_sequences: int | None = None
    #: Converted into the backend's own options Struct by the child.
    options: dict[str, Any] = {}
    placement: Placement
    #: The backend's version as the daemon knows it; the child refuses another. Empty: any.
    backend_version: str = ""
