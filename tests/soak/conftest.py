"""How long the soak lasts: half a minute, or RUNNER_SOAK_S seconds (ten minutes by default) with
RUNNER_SOAK=1."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def soak_s() -> float:
    """Seconds of load."""
    if os.environ.get("RUNNER_SOAK") == "1":
        return float(os.environ.get("RUNNER_SOAK_S", "600"))
    return 15.0
