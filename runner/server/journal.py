"""The daemon's logs: ``runner.log`` for itself, ``engine.log`` for what its workers print."""

from __future__ import annotations

import logging
import logging.handlers
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from runner.server.context import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["ENGINE_LOGGER", "LineFormatter", "logging_to"]

#: Records of this logger go to ``engine.log`` and nowhere else.
ENGINE_LOGGER = "runner.engine"
_MAX_BYTES = 10 * 2**20
_BACKUPS = 3


class LineFormatter(logging.Formatter):
    """``[2026-01-31T12:00:00.000000000Z] INFO scheduler: loading … request_id=…``."""

    def __init__(self) -> None:
        super().__init__()
        self._second = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        """One record; tracebacks follow on lines of their own."""
        text = super().format(record)
        stamp = self._stamp(record.created)
        if record.name == ENGINE_LOGGER:
            return f"{stamp} {text}"
        where = record.name.removeprefix("runner.")
        first, newline, rest = text.partition("\n")
        request_id = REQUEST_ID.get()
        if request_id:
            first += f" request_id={request_id}"
        return f"{stamp} {record.levelname} {where}: {first}{newline}{rest}"

    def _stamp(self, unix: float) -> str:
        """Nine digits of the second, as Docker Model Runner writes them, so that both sort."""
        second = int(unix)
        known, text = self._second
        if known != second:
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = (second, text)
        return f"[{text}.{int((unix - second) * 1e9):09}Z]"


class _RotatingFile(logging.handlers.RotatingFileHandler):
    """Rotates a little late: the original formats every record twice to know its length."""

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802 - its name
        return self.stream is not None and self.stream.tell() >= self.maxBytes


@contextmanager
def logging_to(directory: Path, *, level: str) -> Iterator[None]:
    """Write logs to rotating files in ``directory``; warnings also go to stderr."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    service = _file(directory / "runner.log")
    console = logging.StreamHandler()
    console.setFormatter(LineFormatter())
    console.setLevel(logging.WARNING)
    engine = _file(directory / "engine.log")
    root, engines = logging.getLogger(), logging.getLogger(ENGINE_LOGGER)
    before = root.level, engines.propagate
    root.setLevel(_LEVELS.get(level.lower(), logging.INFO))
    # uvicorn's own lines tell an operator nothing that the daemon's do not.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    engines.propagate = False
    root.addHandler(service)
    root.addHandler(console)
    engines.addHandler(engine)
    try:
        yield
    finally:
        root.removeHandler(service)
        root.removeHandler(console)
        engines.removeHandler(engine)
        for handler in (service, engine):
            handler.close()
        root.setLevel(before[0])
        engines.propagate = before[1]


_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def _file(path: Path) -> logging.Handler:
    handler = _RotatingFile(path, maxBytes=_MAX_BYTES, backupCount=_BACKUPS, encoding="utf-8")
    path.chmod(0o600)
    handler.setFormatter(LineFormatter())
    return handler
