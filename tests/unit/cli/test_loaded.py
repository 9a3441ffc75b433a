from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest


def loaded(**fields: Any) -> dict[str, Any]:
    row = {"backend_name": "llama.cpp", "model_name": "docker.io/ai/smollm2:latest", "mode": "chat"}
    return row | {"last_used": "0001-01-01T00:00:00Z", "keep_alive": "5m0s"} | fields


@pytest.mark.parametrize(
    ("fields", "until"),
    [
        ({"loading": True}, "Loading..."),
        ({"in_use": True, "keep_alive": "-1"}, "Forever"),
        ({"in_use": True, "keep_alive": "1h0m0s"}, "1 hour from now"),
        ({"last_used": "2020-01-01T00:00:00.123456789Z"}, "Expiring"),
        ({"last_used": "nonsense"}, ""),
    ],
)
def test_ps_says_until_when(invoke: Any, fake: Any, fields: dict[str, Any], until: str) -> None:
    fake.json("GET", "/engines/ps", [loaded(pid=4711, state="ready", **fields)])
    row = invoke("ps").stdout.splitlines()[1]
    assert row.split("  ")[0] == "ai/smollm2"
    assert f"  {until}" in row
    assert row.endswith("4711")


def test_ps_counts_from_the_last_use(invoke: Any, fake: Any) -> None:
    last_used = datetime.now(UTC) - timedelta(seconds=90)
    fake.json("GET", "/engines/ps", [loaded(last_used=last_used.isoformat())])
    assert "3 minutes from now" in invoke("ps").stdout


def test_ps_has_its_own_columns_at_the_right(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/engines/ps", [loaded(state="ready", sequences=3, memory_bytes=2**30, pid=1)])
    header, row = invoke("ps").stdout.splitlines()
    assert header.split() == [
        "MODEL",
        "NAME",
        "BACKEND",
        "MODE",
        "UNTIL",
        "STATE",
        "SEQUENCES",
        "MEMORY",
        "PID",
    ]
    assert row.endswith("ready  3          1.00 GiB  1")


def test_ps_json_is_what_the_daemon_said(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/engines/ps", [loaded(new_field=1)])
    assert json.loads(invoke("ps", "--json").stdout) == [loaded(new_field=1)]


def test_ps_without_a_daemon_is_an_empty_table(invoke: Any, settings: Any) -> None:
    result = invoke("ps")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert json.loads(invoke("ps", "--json").stdout) == []


def test_unload_says_how_many(invoke: Any, fake: Any) -> None:
    fake.json("POST", "/engines/unload", {"unloaded_runners": 2})
    assert invoke("unload", "--backend", "llama.cpp", "a", "b").stdout == "Unloaded 2 model(s).\n"
    body = {"all": False, "backend": "llama.cpp", "models": ["a", "b"]}
    assert fake.seen[-1]["body"] == body


def test_unload_of_nothing(invoke: Any, fake: Any) -> None:
    fake.json("POST", "/engines/unload", {"unloaded_runners": 0})
    assert invoke("unload", "--all").stdout == "No models are running.\n"
    assert invoke("unload", "a").stdout == "No such model(s) running.\n"


def test_unload_without_a_daemon_starts_none(invoke: Any, settings: Any) -> None:
    assert invoke("unload", "--all").stdout == "No models are running.\n"


@pytest.mark.parametrize("args", [(), ("--all", "a")])
def test_unload_needs_models_or_all(invoke: Any, args: tuple[str, ...]) -> None:
    assert invoke("unload", *args).exit_code == 2
