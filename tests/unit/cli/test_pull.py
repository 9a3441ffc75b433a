from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api.errors import RequestError
from runner.cli.pull import Layer, Progress, Update, as_reference

if TYPE_CHECKING:
    from pathlib import Path

DONE = {"type": "success", "message": "Model pulled successfully"}


def at(layer: str, size: int, current: int, total: int) -> dict[str, object]:
    return {
        "type": "progress",
        "message": "Downloaded: ? MB",
        "total": total,
        "layer": {"id": layer, "size": size, "current": current},
    }


def test_pull_ends_with_the_familiar_lines(invoke: Any, fake: Any) -> None:
    fake.ndjson(
        "/models/create",
        at("a", 7_710_000, 7_710_000, 257_710_000),
        at("b", 250_000_000, 250_000_000, 257_710_000),
        DONE,
    )
    result = invoke("pull", "ai/smollm2")
    assert result.exit_code == 0
    assert result.stdout == "Downloaded: 257.71 MB\nModel ai/smollm2 pulled successfully\n"
    request = fake.requests("/models/create")[0]
    assert request["body"] == {"from": "ai/smollm2"}
    assert request["headers"]["accept"] == "application/json"


def test_pull_tells_its_progress_in_tenths_when_nobody_watches(invoke: Any, fake: Any) -> None:
    rows = [at("a", 100_000_000, n * 1_000_000, 100_000_000) for n in range(101)]
    fake.ndjson("/models/create", *rows, DONE)
    lines = invoke("pull", "m").stdout.splitlines()
    assert lines[0] == "Downloaded: 10.00 MB of 100.00 MB"
    assert len(lines) == 9 + 2


def test_pull_of_a_cached_model_says_so(invoke: Any, fake: Any) -> None:
    fake.ndjson("/models/create", {"type": "success", "message": "Using cached model: 256 MiB"})
    assert (
        invoke("pull", "m").stdout == "Using cached model: 256 MiB\nModel m pulled successfully\n"
    )


@pytest.mark.parametrize(
    "last",
    [
        {"type": "error", "message": "Error: no space left"},
        {"error": {"message": "no space left", "code": "store_error"}},
        {"error": "no space left"},
    ],
)
def test_pull_that_fails_midway_exits_1(invoke: Any, fake: Any, last: dict[str, Any]) -> None:
    fake.ndjson("/models/create", at("a", 100, 1, 100), last)
    result = invoke("pull", "m")
    assert result.exit_code == 1
    assert result.stderr == "error: no space left\n"
    assert "success" not in result.stdout


def test_pull_that_breaks_off_exits_1(invoke: Any, fake: Any) -> None:
    fake.ndjson("/models/create", at("a", 100, 1, 100))
    result = invoke("pull", "m")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: pulling m ended before it was complete\n")


def test_pull_of_a_path_sends_an_absolute_file_reference(
    invoke: Any, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Model.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    fake.ndjson("/models/create", DONE | {"model": "file/model:latest"})
    result = invoke("pull", "./Model.gguf")
    assert result.stdout == "Model file/model pulled successfully\n"
    assert fake.requests("/models/create")[0]["body"] == {"from": f"file://{tmp_path}/Model.gguf"}


def test_pull_of_a_missing_path_does_not_bother_the_daemon(invoke: Any, fake: Any) -> None:
    result = invoke("pull", "./nothing.gguf")
    assert result.exit_code == 1
    assert "nothing.gguf does not exist" in result.stderr
    assert fake.seen == []


def test_references_that_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.gguf").touch()
    (tmp_path / "50% off.gguf").touch()
    assert as_reference("./50% off.gguf") == f"file://{tmp_path}/50%25%20off.gguf"
    expected = f"file://{tmp_path}/x.gguf"
    assert as_reference("./x.gguf") == expected
    assert as_reference("~/x.gguf") == expected
    assert as_reference("x.gguf") == expected
    assert as_reference(str(tmp_path / "x.gguf")) == expected
    assert as_reference("y.gguf") == "y.gguf"
    assert as_reference("ai/smollm2") == "ai/smollm2"
    with pytest.raises(RequestError, match="is a directory"):
        as_reference(f".{os.sep}")


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 100)).map(
            lambda pair: Update(
                type="progress", total=300, layer=Layer(id=pair[0], size=100, current=pair[1])
            )
        )
    )
)
def test_progress_is_the_sum_of_the_latest_of_each_layer(updates: list[Update]) -> None:
    progress = Progress()
    latest = {}
    for update in updates:
        progress.add(update)
        latest[update.layer.id] = update.layer.current
    assert progress.current == sum(latest.values())
    assert progress.current <= progress.total or not updates
