"""The documentation agrees with the code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from runner import hookspecs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_generated_parts_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{run.stdout}{run.stderr}run: python docs/generate.py"


@pytest.mark.parametrize("name", sorted(set(hookspecs.__all__) - {"BACKEND_HOOKS"}))
def test_every_hook_is_documented_in_the_same_shape(name: str) -> None:
    doc = getattr(hookspecs, name).__doc__
    for part in ("**When:**", "**Result:**", "**Errors:**", "**Since:**"):
        assert part in doc


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def test_every_environment_variable_is_documented() -> None:
    names = set(
        re.findall(r'"((?:RUNNER|MODEL|LOG)_[A-Z_]+)":', (ROOT / "runner/config.py").read_text())
    )
    text = "".join(page.read_text() for page in PAGES)
    assert names - set(re.findall(r"[A-Z_]+", text)) == set()
