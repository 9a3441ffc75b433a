"""The progress bar of a pull, on a terminal."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import TaskID

    from runner.cli.pull import Progress

__all__ = ["Bar", "progress_bar"]


class Bar:
    """Shows a pull as one bar over all of its layers."""

    def __init__(self, rich: RichProgress, task: TaskID) -> None:
        self._rich = rich
        self._task = task

    def update(self, progress: Progress) -> None:
        """Move the bar."""
        self._rich.update(self._task, completed=progress.current, total=progress.total or None)


@contextmanager
def progress_bar(stream: TextIO) -> Iterator[Bar]:
    """A bar that disappears when the block is left."""
    columns = (
        TextColumn("Downloading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(file=stream), transient=True) as rich:
        yield Bar(rich, rich.add_task("pull", total=None))
