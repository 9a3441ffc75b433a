"""Sizes, ages and names the way people say them."""

from __future__ import annotations

import re

__all__ = ["age", "binary_size", "duration", "familiar_name", "megabytes", "short_id", "spaced"]

_STEPS = (
    (365 * 86400, "year"),
    (30 * 86400, "month"),
    (7 * 86400, "week"),
    (86400, "day"),
    (3600, "hour"),
    (60, "minute"),
)


def duration(seconds: float) -> str:
    """``3 days``, ``1 minute``, ``less than a minute``: whole units of the largest that fits."""
    for size, unit in _STEPS:
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return "less than a minute"


def age(then_unix: float, now_unix: float) -> str:
    """``3 days ago``; a moment that was never recorded is ``N/A``."""
    return f"{duration(max(0.0, now_unix - then_unix))} ago" if then_unix > 0 else "N/A"


def megabytes(n_bytes: float) -> str:
    """``257.71 MB``, as the progress of a pull is told."""
    return f"{n_bytes / 1e6:.2f} MB"


def binary_size(n_bytes: int) -> str:
    """``256.35 MiB``."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def spaced(quantity: str) -> str:
    """``361.82M`` as ``361.82 M``: the wire has no space there, tables do."""
    return re.sub(r"^(\d+(?:\.\d+)?)([A-Za-z]+)$", r"\1 \2", quantity)


def familiar_name(tag: str) -> str:
    """``docker.io/ai/smollm2:latest`` as ``ai/smollm2``."""
    return tag.removeprefix("docker.io/").removesuffix(":latest")


def short_id(digest: str) -> str:
    """The first twelve digits of a digest."""
    return digest.removeprefix("sha256:")[:12]
