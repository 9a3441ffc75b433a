"""What a worker prints: whole lines for the log, and its last words for an error message."""

from __future__ import annotations

import codecs

__all__ = ["TAIL_BYTES", "OutputTail", "last_lines"]

#: How much of the end is kept.
TAIL_BYTES = 8 * 1024
#: Longer lines are passed on in pieces, so that a child that never ends one costs no memory.
MAX_LINE_CHARS = 4 * 1024
_CRASH = "Fatal Python error: "


class OutputTail:
    """Splits a stream of bytes into lines and remembers its end.

    Bytes that are not UTF-8 become U+FFFD. A carriage return ends a line too: progress bars.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._tail = bytearray()
        self._is_cut = False

    def feed(self, data: bytes, *, final: bool = False) -> list[str]:
        """Take more bytes, and return the lines that are complete now, without empty ones.

        :param final: no more will come; the last line is complete as it is.
        """
        self._tail += data
        if len(self._tail) > TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]
            self._is_cut = True
        text = self._line + self._decoder.decode(data, final)
        *lines, rest = text.replace("\r", "\n").split("\n")
        if final:
            lines.append(rest)
            rest = ""
        pieces = [
            line[start : start + MAX_LINE_CHARS]
            for line in lines
            for start in range(0, len(line), MAX_LINE_CHARS)
        ]
        while len(rest) > MAX_LINE_CHARS:
            pieces.append(rest[:MAX_LINE_CHARS])
            rest = rest[MAX_LINE_CHARS:]
        self._line = rest
        return [piece for piece in pieces if piece.strip()]

    @property
    def tail(self) -> str:
        """The last :data:`TAIL_BYTES`, beginning with a whole line where there is one."""
        text = self._tail.decode("utf-8", "replace")
        if self._is_cut:
            _, newline, rest = text.partition("\n")
            text = rest if newline and rest else text
        return text.strip()


def last_lines(text: str, count: int = 15) -> str:
    """The last ``count`` lines of a text, for a message.

    The stack that Python prints when a process crashes stays out: the log has it, and the library's
    own words come before it.
    """
    if (crash := text.rfind(_CRASH)) >= 0:
        text = text[: text.find("\n", crash)] if "\n" in text[crash:] else text
    return "\n".join(text.splitlines()[-count:])
