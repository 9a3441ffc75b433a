"""Frames as bytes: four bytes of length (u32, little-endian), then msgpack."""

from __future__ import annotations

import struct
from typing import Any, Generic, TypeVar

import msgspec

from runner.api.errors import WorkerError
from runner.worker.frames import ChildFrame, DaemonFrame

__all__ = [
    "MAX_FRAME_BYTES",
    "FrameDecoder",
    "FrameError",
    "child_frames",
    "daemon_frames",
    "encode_frame",
]

#: The largest frames are a step's embeddings (2,048 vectors of 8,192 f32 are 64 MiB) and a request
#: as large as the HTTP body limit (64 MiB by default); anything far above that is garbage.
MAX_FRAME_BYTES = 256 * 2**20

_LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()
#: What msgspec raises for bytes it cannot decode, and for values it cannot encode. MemoryError: a
#: few bytes may claim an array of billions.
_UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError, MemoryError)
_UNENCODABLE = (msgspec.MsgspecError, ValueError, OverflowError, TypeError, RecursionError)

F = TypeVar("F")


class FrameError(WorkerError):
    """Bytes that are no frame, or a frame that cannot become bytes."""


def encode_frame(frame: DaemonFrame | ChildFrame) -> bytes:
    """A frame with its length in front.

    :raises FrameError: it is too large, or holds what msgpack cannot carry (such as an integer
        above 64 bits).
    """
    buffer = bytearray(_LENGTH.size)
    try:
        _ENCODER.encode_into(frame, buffer, _LENGTH.size)
    except _UNENCODABLE as exc:
        raise FrameError(f"cannot encode a {type(frame).__name__} frame: {exc}") from exc
    size = len(buffer) - _LENGTH.size
    if size > MAX_FRAME_BYTES:
        raise FrameError(
            f"a {type(frame).__name__} frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}"
        )
    _LENGTH.pack_into(buffer, 0, size)
    return bytes(buffer)


class FrameDecoder(Generic[F]):
    """Makes frames of bytes that arrive in any portions.

    After a :class:`FrameError` the connection is lost: there is no way back into step.
    """

    def __init__(self, decoder: msgspec.msgpack.Decoder[F]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[F]:
        """Take more bytes, and return the frames that are complete now.

        :raises FrameError: the bytes are no frames.
        """
        buffer = self._buffer
        buffer += data
        frames: list[F] = []
        start, available = 0, len(buffer)
        while available - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"a frame claims {size} bytes; the limit is {MAX_FRAME_BYTES}")
            begin = start + _LENGTH.size
            if available - begin < size:
                break
            start = begin + size
            frames.append(self._decode(buffer[begin:start]))
        del buffer[:start]
        return frames

    def _decode(self, payload: bytearray) -> F:
        try:
            return self._decoder.decode(payload)
        except _UNDECODABLE as exc:
            raise FrameError(f"{len(payload)} bytes are not a frame: {exc}") from exc


def child_frames() -> FrameDecoder[Any]:
    """A decoder of what the child says (:data:`ChildFrame`)."""
    return FrameDecoder(msgspec.msgpack.Decoder(ChildFrame))


def daemon_frames() -> FrameDecoder[Any]:
    """A decoder of what the daemon says (:data:`DaemonFrame`)."""
    return FrameDecoder(msgspec.msgpack.Decoder(DaemonFrame))
