"""What a user gets: the built wheel, installed in a plain environment."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
FRANCE = "What is the capital of France? Answer in one word."


def run(*command: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNNER_", "MODEL", "PYTHON"))}
    env["RUNNER_HOME"] = str(home)
    # From a folder without the sources: only what is installed may be imported.
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env=env,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text("port = 0\n")
    return tmp_path


def test_nothing_generic_lands_in_site_packages() -> None:
    files = importlib.metadata.files("model-runner") or []
    tops = {file.parts[0] for file in files if file.parts[0] not in {"..", "bin"}}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "runner",
        "runner_embedded",
        "runner_file",
        "runner_llamacpp",
    }
    for package in ("runner", "runner_embedded", "runner_file", "runner_llamacpp"):
        assert f"{package}/py.typed" in {str(file) for file in files}


def test_the_installed_package_is_the_wheel_and_not_the_sources() -> None:
    distribution = importlib.metadata.distribution("model-runner")
    assert "editable" not in (distribution.read_text("direct_url.json") or "")


def test_the_installed_command_answers_with_a_real_model(home: Path) -> None:
    try:
        ask = ("run", "--temperature", "0", "embedded/smollm2", FRANCE)
        answer = run("runner", *ask, home=home)
        assert answer.returncode == 0, answer.stderr
        assert "Paris" in answer.stdout
    finally:
        assert run("runner", "stop", home=home).returncode == 0


def test_the_test_kit_is_no_entry_point_of_the_wheel() -> None:
    entries = importlib.metadata.distribution("model-runner").entry_points
    assert not [entry for entry in entries if "testing" in entry.value]
