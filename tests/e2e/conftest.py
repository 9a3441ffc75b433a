"""A real daemon for each module, or for a test alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from runner.testing.daemon import Daemon, running_daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon shared by the tests of a module."""
    with running_daemon(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture
def fresh_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of the test's own, which it may kill."""
    with running_daemon(tmp_path / "home") as running:
        yield running
