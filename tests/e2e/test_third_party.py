"""A stranger's backend: built as a wheel, installed beside Runner, used with no change to it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest

from runner.testing.daemon import run_cli, running_daemon

pytestmark = pytest.mark.model
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "shout"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A virtual environment with the example's wheel; Runner itself is seen from outside."""
    folder = tmp_path_factory.mktemp("stranger")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*wheel, str(EXAMPLE)], check=True)
    venv.create(folder / "venv", symlinks=True)
    paths = sysconfig.get_paths(
        vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    )
    target = Path(paths["purelib"])
    (built,) = folder.glob("runner_shout-*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
    ]
    subprocess.run([*install, str(built)], check=True)
    # What .pth files of the outer environment point to (an editable Runner) counts as well.
    outer = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in outer]
    (target / "outer.pth").write_text("\n".join(lines))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RUNNER_", "MODEL"))}
    return kept | {"STRANGER_PYTHON": str(folder / "venv" / "bin" / "python")}


def test_a_third_party_backend_is_listed_and_answers(
    environment: dict[str, str], tmp_path: Path
) -> None:
    python = environment["STRANGER_PYTHON"]
    with running_daemon(tmp_path / "home", environment=environment, python=python) as daemon:
        listed = run_cli("backends", "list", environment=daemon.environment, python=python)
        assert "shout" in listed.stdout, listed.stderr
        answer = daemon.chat("not so quiet", prefix="/engines/shout/v1")
        assert answer.json()["choices"][0]["message"]["content"] == "NOT SO QUIET"
        (row,) = daemon.ps()
        assert row["backend_name"] == "shout"
        refused = httpx.post(
            f"{daemon.url}/engines/shout/v1/completions",
            json={"model": "embedded/smollm2", "prompt": "x"},
        )
        assert refused.status_code == 400
        assert daemon.get("/runner/plugins")
        # A request that names no backend goes to the default one, as before.
        assert (
            "Paris"
            in daemon.chat("What is the capital of France? Answer in one word.", max_tokens=12).text
        )
