"""An answer as formatted Markdown, block by block while it is written."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["BlockSplitter", "MarkdownOutput"]

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


class BlockSplitter:
    """Cuts streamed Markdown at blank lines, but never inside a fenced block of code.

    Nothing is lost: the blocks and :attr:`rest`, joined, are the text that was fed.
    """

    def __init__(self) -> None:
        #: What is not a whole block yet.
        self.rest = ""
        self._scanned = 0
        self._fence: str | None = None

    def feed(self, text: str) -> list[str]:
        """Take more text and return the blocks it completes."""
        self.rest += text
        blocks: list[str] = []
        while (end := self.rest.find("\n", self._scanned)) >= 0:
            line = self.rest[self._scanned : end]
            self._scanned = end + 1
            if self._closes_block(line):
                blocks.append(self.rest[: self._scanned])
                self.rest = self.rest[self._scanned :]
                self._scanned = 0
        return blocks

    def _closes_block(self, line: str) -> bool:
        fence = _FENCE.match(line)
        if self._fence is not None:
            if fence and fence[1].startswith(self._fence) and not line[fence.end() :].strip():
                self._fence = None
                return True
            return False
        if fence:
            self._fence = fence[1]
            return False
        return not line.strip()


class MarkdownOutput:
    """Finished blocks are printed for good; the one being written is redrawn where it stands."""

    def __init__(self) -> None:
        self._console = Console(file=sys.stdout, force_terminal=True, highlight=False)
        self._splitter = BlockSplitter()
        # Redrawing needs a real terminal; colour alone can be asked for in a pipe, too.
        self._live = (
            Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                vertical_overflow="ellipsis",
            )
            if sys.stdout.isatty()
            else None
        )

    def write(self, text: str) -> None:
        """Format what is whole, and show the rest for now."""
        blocks = self._splitter.feed(text)
        if self._live is None:
            for block in blocks:
                self._print(block)
            return
        self._live.start()
        for block in blocks:
            self._live.update("", refresh=True)
            self._print(block)
        self._live.update(self._rendered(self._splitter.rest), refresh=True)

    def finish(self) -> None:
        """Format what is left."""
        if self._live is not None:
            self._live.stop()
        self._print(self._splitter.rest)
        self._splitter = BlockSplitter()

    def _print(self, block: str) -> None:
        if block.strip():
            self._console.print(self._rendered(block))

    @staticmethod
    def _rendered(text: str) -> RenderableType:
        return Markdown(text) if text.strip() else ""
