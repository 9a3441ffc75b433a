"""A daemon small enough to say anything: an HTTP server on the Unix socket of a fresh home."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from runner import __version__
from runner.cli.main import cli
from runner.config import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runner.config import Settings


CHAT = "/engines/v1/chat/completions"
#: How a stream ends: the reason, the usage, the end.
END = (
    'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}',
    'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}',
    "data: [DONE]",
)


class Handler(BaseHTTPRequestHandler):
    server: FakeDaemon

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        path = self.path.partition("?")[0]
        self.server.seen.append(
            {
                "method": self.command,
                "path": self.path,
                "headers": {k.lower(): v for k, v in self.headers.items()},
                "body": json.loads(body) if body else None,
            }
        )
        status, kind, content = self.server.routes.get(
            (self.command, path), (404, "text/plain", b"not found\n")
        )
        # HTTP/1.0: the end of the connection is the end of the answer.
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("x-request-id", "req-1")
        self.end_headers()
        if isinstance(content, bytes):
            self.wfile.write(content)
        else:
            with suppress(BrokenPipeError, ConnectionResetError):
                content(self.wfile.write)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names http.server calls

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has above
        pass


class FakeDaemon(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.routes: dict[tuple[str, str], tuple[int, str, bytes | Callable[..., None]]] = {}
        self.seen: list[dict[str, Any]] = []
        super().__init__(str(path), Handler)
        self.json("GET", "/version", {"version": __version__})

    def json(self, method: str, path: str, value: object, *, status: int = 200) -> None:
        self.routes[method, path] = (status, "application/json", json.dumps(value).encode())

    def error(self, method: str, path: str, status: int, code: str, message: str) -> None:
        envelope = {"message": message, "type": "server_error", "param": None, "code": code}
        self.json(method, path, {"error": envelope}, status=status)

    def sse(self, path: str, *blocks: str) -> None:
        data = "".join(f"{block}\n\n" for block in blocks).encode()
        self.routes["POST", path] = (200, "text/event-stream", data)

    def chat(self, *deltas: str | dict[str, Any], path: str = CHAT) -> None:
        """Answer chats with these deltas; a string is content."""
        self.sse(path, *[self.chunk(delta) for delta in deltas], *END)

    @staticmethod
    def chunk(delta: str | dict[str, Any]) -> str:
        delta = {"content": delta} if isinstance(delta, str) else delta
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        return "data: " + json.dumps({"choices": [choice]}, ensure_ascii=False)

    def ndjson(self, path: str, *rows: object) -> None:
        data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        self.routes["POST", path] = (200, "application/json", data)

    def requests(self, path: str) -> list[dict[str, Any]]:
        return [seen for seen in self.seen if seen["path"].partition("?")[0] == path]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a fresh home, which the commands under test see too."""
    for name in ("RUNNER_HOST", "MODEL_RUNNER_HOST", "MODELS_PATH", "RUNNER_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RUNNER_HOME", str(tmp_path / "home"))
    settings = load_settings()
    settings.home.mkdir()
    settings.socket_path.parent.mkdir(parents=True, exist_ok=True)
    return settings


@contextmanager
def serving(path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(path) as fake:
        thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            fake.shutdown()
            thread.join()
            path.unlink()


@pytest.fixture
def fake(settings: Settings) -> Iterator[FakeDaemon]:
    with serving(settings.socket_path) as fake:
        yield fake


class Invoke:
    """Runs the program and answers what it printed and how it ended."""

    def __call__(self, *args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, args, input=stdin, prog_name="runner")


@pytest.fixture
def invoke() -> Invoke:
    return Invoke()
