"""Text from the bytes of tokens, which may end in the middle of a character."""

from __future__ import annotations

import codecs

__all__ = ["Utf8Decoder"]


class Utf8Decoder:
    """Decodes a stream of bytes so that no character is ever split.

    Invalid bytes become U+FFFD, exactly where ``bytes.decode("utf-8", "replace")`` of the whole
    stream would put it, whatever the pieces.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        """The whole characters that ``data`` completes; up to three bytes are held back."""
        return self._decoder.decode(data)

    def flush(self) -> str:
        """End the stream: U+FFFD for a character that was never completed, else nothing."""
        return self._decoder.decode(b"", final=True)
