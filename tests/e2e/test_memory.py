"""Memory that is known before it is used: eviction, refusal, idle unload."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runner.testing.daemon import running_daemon
from runner.testing.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model


def clean(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RUNNER_", "MODEL"))}
    return kept | variables


def test_an_idle_model_makes_room_for_the_next_one(tmp_path: Path, smollm2_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        daemon.chat("hi", max_tokens=1)
        estimate = daemon.ps()[0]["memory_bytes"]
    room_for_one_and_a_half = clean(RUNNER_MEMORY_LIMIT=str(int(estimate * 1.5)))
    with running_daemon(tmp_path / "home", environment=room_for_one_and_a_half) as daemon:
        twin = tmp_path / "twin.gguf"
        # Another file, so another model: a byte more than the tensors need.
        twin.write_bytes(smollm2_path.read_bytes() + b"\0")
        assert daemon.cli("pull", str(twin)).returncode == 0
        for model in ("embedded/smollm2", "file/twin", "embedded/smollm2"):
            assert daemon.chat("hi", model=model, max_tokens=1).status_code == 200
            (row,) = daemon.ps()
            assert model in row["model_name"]


def test_a_model_that_can_never_fit_is_refused_with_the_sum(tmp_path: Path) -> None:
    with running_daemon(
        tmp_path / "home", environment=clean(RUNNER_MEMORY_LIMIT=str(60 * 2**20))
    ) as daemon:
        refused = daemon.chat("hi")
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "model_too_large"
        assert refused.headers["x-should-retry"] == "false"
        assert "MiB" in refused.json()["error"]["message"]
        assert daemon.ps() == []


def test_an_idle_model_is_unloaded_after_its_keep_alive(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home", environment=clean(RUNNER_KEEP_ALIVE="1s")) as daemon:
        daemon.chat("hi", max_tokens=1)
        assert len(daemon.ps()) == 1
        wait_until(lambda: daemon.ps() == [], timeout_s=10)
        daemon.chat("hi", max_tokens=1, keep_alive=-1)
        assert daemon.ps()[0]["keep_alive"] == "-1"
        daemon.chat("hi", max_tokens=1, keep_alive="0")
        wait_until(lambda: daemon.ps() == [], timeout_s=10)
