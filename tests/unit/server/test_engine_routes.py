"""Status, ps, unload, backends, plugins; the logs."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from runner.api.backend import Placement
from runner.api.engine import EngineStats
from runner.plugins import PluginRow
from runner.scheduler import WorkerStatus
from runner.server.context import REQUEST_ID
from runner.server.journal import ENGINE_LOGGER, logging_to
from runner.server.log_view import LogTail, merge_logs
from runner.server.routes.engines import go_duration

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


def status(**changes: Any) -> WorkerStatus:
    values: dict[str, Any] = {
        "key": "k",
        "backend": "parrot",
        "model_id": "sha256:" + "b" * 64,
        "model_name": "ai/other",
        "state": "ready",
        "pid": 7,
        "leases": 0,
        "waiting": 0,
        "last_used_unix": 1700000000.5,
        "keep_alive_s": 300.0,
        "placement": Placement(context_size=8, kv_cells=16, max_sequences=2),
        "estimate": {"cpu": 100},
        "stats": EngineStats(active=1, queued=2, kv_cells=16, kv_used=5),
        "progress": None,
    }
    return WorkerStatus(**{**values, **changes})


async def test_ps_has_docker_model_runners_fields_and_ours(harness: Any) -> None:
    harness.scheduler.workers = (
        status(),
        status(leases=1),
        status(state="loading", pid=None, last_used_unix=None, stats=None, waiting=3, progress=0.5),
    )
    async with harness.client() as client:
        idle, busy, loading = (await client.get("/engines/ps")).json()
    assert idle == {
        "backend_name": "parrot",
        "model_name": "ai/other",
        "mode": "completion",
        "last_used": "2023-11-14T22:13:20.500000Z",
        "keep_alive": "5m0s",
        "model_id": "sha256:" + "b" * 64,
        "state": "ready",
        "pid": 7,
        "requests": 0,
        "waiting": 0,
        "sequences": 1,
        "sequences_queued": 2,
        "kv_used": 5,
        "kv_cells": 16,
        "memory_bytes": 100,
        "memory": {"cpu": 100},
        "placement": {"context_size": 8, "kv_cells": 16, "max_sequences": 2, "gpu_layers": 0},
        "progress": None,
    }
    assert (busy["in_use"], busy["last_used"]) == (True, "0001-01-01T00:00:00Z")
    assert (loading["loading"], loading["waiting"], loading["progress"]) == (True, 3, 0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(300, "5m0s"), (3600, "1h0m0s"), (30, "30s"), (0, "0s"), (-1, "-1"), (1.5, "1.5s")],
)
def test_durations_are_written_as_go_writes_them(seconds: float, text: str) -> None:
    assert go_duration(seconds) == text


async def test_unload_passes_on_what_was_named(harness: Any) -> None:
    harness.scheduler.workers = (status(),)
    model_id = harness.store.models[0].id
    async with harness.client() as client:
        for body in (
            {"all": True},
            {"models": ["ai/tiny", "ai/other", "ai/gone"]},
            {"backend": "polly"},
        ):
            response = await client.post("/engines/unload", json=body)
            assert response.json() == {"unloaded_runners": 1}
        nothing = await client.post("/engines/unload", json={})
        unknown = await client.post("/engines/unload", json={"all": True, "backend": "owl"})
    assert harness.scheduler.unloaded == [
        {"backend": None, "model_ids": None},
        {"backend": None, "model_ids": [model_id, "sha256:" + "b" * 64, "ai/gone"]},
        {"backend": "parrot", "model_ids": None},
    ]
    assert (nothing.status_code, unknown.status_code) == (400, 404)


async def test_backends_and_plugins_are_listed(harness: Any) -> None:
    row = PluginRow(
        name="x", kind="plugin", distribution="d", version="1", status="failed", error="why"
    )
    harness.plugins.rows = (row,)
    async with harness.client() as client:
        assert (await client.get("/engines/status")).json() == {"parrot": "Running: libparrot 3"}
        (backend,) = (await client.get("/runner/backends")).json()
        (plugin,) = (await client.get("/runner/plugins")).json()
    assert (backend["name"], backend["is_default"]) == ("parrot", True)
    assert (plugin["status"], plugin["error"]) == ("failed", "why")


def test_log_lines_have_a_time_a_place_and_the_request(tmp_path: Path) -> None:
    with logging_to(tmp_path, level="info"):
        token = REQUEST_ID.set("req_1")
        logging.getLogger("runner.scheduler").info("loading %s", "m")
        REQUEST_ID.reset(token)
        logging.getLogger(ENGINE_LOGGER).info("llama says hi")
        logging.getLogger("runner.scheduler").debug("not shown")
    service, engine = (tmp_path / "runner.log").read_text(), (tmp_path / "engine.log").read_text()
    stamp = r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z\]"
    assert re.fullmatch(rf"{stamp} INFO scheduler: loading m request_id=req_1\n", service)
    assert re.fullmatch(rf"{stamp} llama says hi\n", engine)
    assert logging.getLogger(ENGINE_LOGGER).propagate


def test_logs_are_merged_by_time_and_tracebacks_stay_together() -> None:
    service = [b"[1] a", b"[3] c", b"  trace", b"[5] e"]
    engine = [b"[2] b", b"[3] d"]
    assert merge_logs([service, engine]).decode().splitlines() == [
        "[1] a",
        "[2] b",
        "[3] c",
        "  trace",
        "[3] d",
        "[5] e",
    ]


def test_a_tail_gives_whole_lines_and_survives_rotation(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    tail = LogTail(path)
    assert tail.read() == []
    path.write_bytes(b"one\ntw")
    assert tail.read() == [b"one"]
    with path.open("ab") as file:
        file.write(b"o\n")
    assert tail.read() == [b"two"]
    path.rename(tmp_path / "x.log.1")
    path.write_bytes(b"three\n")
    assert tail.read() == [b"three"]


async def test_logs_are_for_the_socket_or_for_key_holders(harness: Any) -> None:
    log_dir = harness.settings.log_dir
    async with harness.client(over_socket=True) as client:
        assert (await client.get("/logs")).status_code == 404
    log_dir.mkdir(parents=True)
    (log_dir / "runner.log").write_text("[1] service\n")
    (log_dir / "engine.log").write_text("[0] engine\n")
    async with harness.client() as client:
        assert (await client.get("/logs")).status_code == 403
    async with harness.client(over_socket=True) as client:
        both = await client.get("/logs?follow=false")
        one = await client.get("/logs?no-engines=true")
        bad = await client.get("/logs?follow=maybe")
    assert both.text == "[0] engine\n[1] service\n"
    assert one.text == "[1] service\n"
    assert bad.status_code == 400
    assert "is not a valid boolean" in bad.json()["error"]["message"]
    harness.set(api_key="k")
    async with harness.client() as client:
        assert (await client.get("/logs", headers={"x-api-key": "k"})).status_code == 200


async def test_following_logs_shows_new_lines(harness: Any) -> None:
    log_dir = harness.settings.log_dir
    log_dir.mkdir(parents=True)
    path = log_dir / "runner.log"
    path.write_text("[1] first\n")
    async with (
        harness.listen() as (_, client),
        client.stream("GET", "/logs?follow=true") as response,
    ):
        lines = response.aiter_lines()
        assert await anext(lines) == "[1] first"
        with path.open("a") as file:
            file.write("[2] second\n")
        assert await anext(lines) == "[2] second"
