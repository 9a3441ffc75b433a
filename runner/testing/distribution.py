"""Installs a module as a plugin, by writing the metadata an installer would have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["install_fake"]


def install_fake(
    path: Path,
    *,
    name: str = "fake",
    group: str = "runner.backends",
    module: str = "runner.testing.fake",
    version: str = "1.0",
) -> Path:
    """Write a ``.dist-info`` with one entry point into a directory.

    With the directory on ``PYTHONPATH`` (or ``sys.path``), every process finds the entry point as
    it finds those of installed distributions. The module itself may lie in the directory too.

    :param name: of the entry point and of the distribution; a backend's ``BackendInfo.name``.
    :returns: the ``.dist-info`` directory.
    """
    info = path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n", encoding="utf-8")
    return info
