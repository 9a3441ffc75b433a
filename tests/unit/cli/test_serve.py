from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from runner import __version__
from runner.cli.daemon import read_record
from runner.cli.serve import Announcer

if TYPE_CHECKING:
    from runner.config import Settings

LISTENING = SimpleNamespace(socket="/run/x.sock", tcp=("http://127.0.0.1:1",))


def test_ready_daemon_leaves_its_record_and_tells_the_pipe_once(settings: Settings) -> None:
    reader, writer = os.pipe()
    announcer = Announcer(settings, writer)
    announcer.ready(LISTENING)
    announcer.failed("too late to matter")
    with os.fdopen(reader) as pipe:
        told = [json.loads(line) for line in pipe]
    assert told == [{"pid": os.getpid(), "socket": "/run/x.sock", "tcp": ["http://127.0.0.1:1"]}]
    record = read_record(settings)
    assert record is not None
    assert (record.pid, record.version) == (os.getpid(), __version__)
    assert record.started == pytest.approx(psutil.Process().create_time())
    assert [path.name for path in settings.home.iterdir()] == ["daemon.json"]


def test_pipe_that_nobody_reads_any_more_does_not_matter(settings: Settings) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    Announcer(settings, writer).ready(LISTENING)
    assert read_record(settings) is not None


def test_failure_before_readiness_reaches_the_pipe(
    settings: Settings, invoke: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    # The daemon changes its directory; this leaves the test's own as it was.
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    result = invoke("serve", "--host", "0.0.0.0", "--port", "0", "--ready-fd", str(writer))
    with os.fdopen(reader) as pipe:
        told = json.loads(pipe.read())
    assert result.exit_code == 1
    assert result.stderr == f"error: {told['error']}\n"
    assert "API key" in told["error"]
    assert read_record(settings) is None
