"""Child side: the socket to the daemon, read by a thread that outlives a stuck engine."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from typing import TYPE_CHECKING

from runner.worker.codec import FrameError, daemon_frames, encode_frame
from runner.worker.frames import Stop

if TYPE_CHECKING:
    from runner.worker.frames import ChildFrame, DaemonFrame

__all__ = ["Link"]

_RECEIVE_BYTES = 256 * 1024


class Link:
    """Frames out under a lock, because a backend may report from its own threads; frames in as a
    queue that one thread fills.

    That thread ends the process when the daemon closes the socket, even while native code runs in
    the main thread: a worker never outlives its daemon.
    """

    def __init__(self, fd: int) -> None:
        # Programs that an engine starts must not hold the socket open.
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        self._inbox: queue.SimpleQueue[DaemonFrame] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stops_at_once = True
        threading.Thread(target=self._read, name="daemon-link", daemon=True).start()

    def hold_stop(self) -> None:
        """From now on a Stop waits for the main loop; before, there is nothing to unload, and the
        reader thread exits at once, whatever the main thread does."""
        self._stops_at_once = False

    def send(self, frame: ChildFrame) -> None:
        """Send one frame; blocks while the daemon does not read."""
        data = encode_frame(frame)
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError:
            # The daemon is gone. Nobody is left who could be told.
            os._exit(0)

    def receive(self) -> DaemonFrame:
        """The next frame; waits for it."""
        return self._inbox.get()

    def pending(self) -> list[DaemonFrame]:
        """The frames that have arrived."""
        frames = []
        while not self._inbox.empty():
            frames.append(self._inbox.get())
        return frames

    def request_stop(self) -> None:
        """As if the daemon had asked for it; safe in a signal handler."""
        self._inbox.put(Stop())

    def _read(self) -> None:
        decoder = daemon_frames()
        while True:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except OSError:
                data = b""
            if not data:
                os._exit(0)
            try:
                frames = decoder.feed(data)
            except FrameError as exc:
                sys.stderr.write(f"the daemon sent what this worker cannot read: {exc}\n")
                sys.stderr.flush()
                os._exit(1)
            for frame in frames:
                if self._stops_at_once and isinstance(frame, Stop):
                    os._exit(0)
                self._inbox.put(frame)
