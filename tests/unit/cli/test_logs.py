from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.config import Settings


def test_logs_come_from_the_daemon_when_it_is_up(invoke: Any, fake: Any) -> None:
    fake.routes["GET", "/logs"] = (200, "text/plain", "[1] one\n[2] zwölf\n".encode())
    assert invoke("logs", "--no-engines", "-f").stdout == "[1] one\n[2] zwölf\n"
    assert fake.seen[-1]["path"] == "/logs?follow=true&no-engines=true"


def test_logs_of_a_dead_daemon_are_read_and_merged_by_time(invoke: Any, settings: Settings) -> None:
    settings.log_dir.mkdir()
    (settings.log_dir / "runner.log").write_text(
        "[2026-01-01T00:00:01.000000000Z] ERROR it failed\n"
        "Traceback (most recent call last):\n"
        "  2 lines of it\n"
        "[2026-01-01T00:00:03.000000000Z] INFO later\n"
    )
    (settings.log_dir / "engine.log").write_text("[2026-01-01T00:00:02.000000000Z] engine\n")
    lines = invoke("logs").stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [
        *("failed", "last):", "it", "engine", "later")
    ]
    assert "engine" not in invoke("logs", "--no-engines").stdout


def test_logs_before_anything_was_logged(invoke: Any, settings: Settings) -> None:
    result = invoke("logs")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "Nothing has been logged" in result.stderr


def test_following_a_dead_daemon_is_an_error(invoke: Any, settings: Settings) -> None:
    assert invoke("logs", "-f").stderr.startswith("error: Runner is not running\n")
