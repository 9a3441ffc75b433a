from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from runner.api import EngineProbe, PluginError
from runner.testing.distribution import install_fake
from runner.worker.probe import probe_backend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

ROGUE = """
import os, subprocess, sys, time
from runner.api import BackendInfo, EngineProbe, hookimpl
from runner.testing.fake import (FakeOptions, runner_estimate_memory, runner_hardware_support,
    runner_load_model)

@hookimpl
def runner_backend_info():
    return BackendInfo(name="rogue", description="", formats=("gguf",), options=FakeOptions)

@hookimpl
def runner_probe_engine():
"""


def install_rogue(site: Path, probe: str) -> None:
    install_fake(site, name="rogue", module="rogue_backend")
    (site / "rogue_backend.py").write_text(f"{ROGUE}    {probe}\n")


async def test_a_probe_tells_what_the_library_says(environment: dict[str, str]) -> None:
    probe = await probe_backend("fake", environment=environment, timeout_s=30)
    assert probe == EngineProbe(version="fake 1.0", build="scripted", devices=("cpu",))


async def test_what_the_library_prints_is_no_part_of_the_answer(
    environment: dict[str, str], site: Path
) -> None:
    install_rogue(site, 'os.system("echo noise"); print("noise"); return EngineProbe(version="1")')
    probe = await probe_backend("rogue", environment=environment, timeout_s=30)
    assert probe == EngineProbe(version="1")


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ('raise OSError("libengine.so is missing")', "libengine.so is missing"),
        (
            'sys.stderr.write("last word\\\\n"); sys.stderr.flush(); os._exit(7)',
            "status 7: last word",
        ),
        ("os.kill(os.getpid(), 9)", "status -9: it said nothing"),
        ("return 5", "EngineProbe"),
    ],
)
async def test_a_probe_that_fails_ends_with_its_last_words(
    environment: dict[str, str], site: Path, hook: str, words: str
) -> None:
    install_rogue(site, hook)
    with pytest.raises(PluginError, match=words):
        await probe_backend("rogue", environment=environment, timeout_s=30)


async def test_a_probe_that_hangs_is_ended_with_all_it_started(
    environment: dict[str, str], site: Path
) -> None:
    install_rogue(site, 'subprocess.Popen(["sleep", "600"]); time.sleep(600)')
    before = time.monotonic()
    with pytest.raises(PluginError, match="longer than 1 s"):
        await probe_backend("rogue", environment=environment, timeout_s=1)
    assert time.monotonic() - before < 10


async def test_an_unknown_backend_cannot_be_probed(environment: dict[str, str]) -> None:
    with pytest.raises(PluginError, match="nonesuch"):
        await probe_backend("nonesuch", environment=environment, timeout_s=30)
