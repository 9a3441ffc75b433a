from __future__ import annotations

import json
import time
from typing import Any

import pytest

ID = "sha256:" + "354bf30d0aa3" + "0" * 52
SMOLLM = {
    "id": ID,
    "tags": ["docker.io/ai/smollm2:latest", "docker.io/ai/smollm2:135M"],
    "config": {
        "format": "gguf",
        "quantization": "IQ2_XXS/Q4_K_M",
        "parameters": "361.82M",
        "architecture": "llama",
        "size": "256.35MiB",
    },
}


@pytest.fixture
def models(fake: Any) -> list[dict[str, Any]]:
    untagged: dict[str, Any] = {
        "id": "sha256:" + "a" * 64,
        "created": 0,
        "config": {"quantization": "\x1b[31mQ4"},
    }
    models = [untagged, SMOLLM | {"created": int(time.time()) - 3 * 86400 - 5}]
    fake.json("GET", "/models", models)
    return models


def test_list_is_the_familiar_table(invoke: Any, models: list[dict[str, Any]]) -> None:
    lines = invoke("list").stdout.splitlines()
    assert lines[0] == (
        "MODEL            PARAMETERS  QUANTIZATION    ARCHITECTURE  MODEL ID      CREATED     SIZE"
    )
    assert lines[2] == (
        "ai/smollm2       361.82 M    IQ2_XXS/Q4_K_M  llama         354bf30d0aa3  3 days ago"
        "  256.35 MiB"
    )
    assert lines[3].startswith("ai/smollm2:135M  361.82 M")
    assert invoke("ls").stdout.splitlines() == lines


def test_list_shows_untagged_models_and_disarms_their_metadata(
    invoke: Any, models: list[dict[str, Any]]
) -> None:
    row = invoke("list").stdout.splitlines()[1]
    assert row.startswith("<none>")
    assert "\x1b" not in row
    assert "\N{REPLACEMENT CHARACTER}[31mQ4" in row


def test_list_quiet_prints_each_id_once(invoke: Any, models: list[dict[str, Any]]) -> None:
    assert invoke("list", "-q").stdout == "aaaaaaaaaaaa\n354bf30d0aa3\n"


def test_list_json_is_what_the_daemon_said(invoke: Any, models: list[dict[str, Any]]) -> None:
    output = invoke("list", "--json").stdout
    assert json.loads(output) == models
    assert output.startswith('[\n  {\n    "id"')


def test_list_of_one_name(invoke: Any, models: list[dict[str, Any]]) -> None:
    assert len(invoke("list", "ai/smollm2").stdout.splitlines()) == 3
    assert len(invoke("list", "other").stdout.splitlines()) == 1


def test_list_openai(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/engines/v1/models", {"object": "list", "data": []})
    assert json.loads(invoke("list", "--openai").stdout) == {"object": "list", "data": []}


def test_list_formats_exclude_each_other(invoke: Any, models: list[dict[str, Any]]) -> None:
    assert invoke("list", "--json", "-q").exit_code == 2


def test_inspect_prints_json(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/models/ai/smollm2:135M", SMOLLM)
    result = invoke("inspect", "ai/smollm2:135M")
    assert json.loads(result.stdout) == SMOLLM


def test_inspect_of_a_missing_model_is_an_error(invoke: Any, fake: Any) -> None:
    fake.error("GET", "/models/ai/nope", 404, "model_not_found", 'model not found: "ai/nope"')
    result = invoke("inspect", "ai/nope")
    assert result.exit_code == 1
    assert result.stderr == 'error: model not found: "ai/nope"\n'


def test_error_without_envelope_is_shown_as_it_is(invoke: Any, fake: Any) -> None:
    fake.routes["GET", "/models/x"] = (409, "text/plain", b"resource conflict\n")
    assert invoke("inspect", "x").stderr == "error: resource conflict\n"


def test_answer_that_is_no_json_is_explained(invoke: Any, fake: Any) -> None:
    fake.routes["GET", "/models"] = (200, "text/html", b"<html>")
    result = invoke("list")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the daemon's answer cannot be understood")


def test_rm_tells_what_went(invoke: Any, fake: Any) -> None:
    fake.json("DELETE", "/models/ai/smollm2", [{"Untagged": "ai/smollm2:latest"}, {"Deleted": ID}])
    result = invoke("rm", "ai/smollm2")
    assert result.stdout == (
        f"Untagged: ai/smollm2:latest\nDeleted: {ID}\nModel ai/smollm2 removed successfully\n"
    )
    assert "force" not in fake.seen[-1]["path"]


def test_rm_goes_on_after_a_failure_and_exits_1(invoke: Any, fake: Any) -> None:
    fake.error("DELETE", "/models/a", 404, "model_not_found", "no a")
    fake.error("DELETE", "/models/b", 409, "model_in_use", "b is in use")
    fake.json("DELETE", "/models/c", [])
    result = invoke("rm", "-f", "a", "b", "c")
    assert result.exit_code == 1
    assert result.stdout == "Model c removed successfully\n"
    assert result.stderr == "error: no a\nerror: b is in use\n"
    assert fake.seen[-1]["path"] == "/models/c?force=true"
