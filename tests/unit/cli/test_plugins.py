from __future__ import annotations

import json
from typing import Any

import msgspec

from runner.plugins import PluginRow
from runner.scheduler.backends import BackendStatus

LLAMA = BackendStatus(
    name="llama.cpp",
    description="llama.cpp",
    aliases=("llamacpp",),
    distribution="model-runner",
    version="0.1.0",
    engine="llama-cpp-python 0.3.36",
    build="abc",
    formats=("gguf",),
    modes=("chat", "completion"),
    rank=100,
    is_supported=True,
    devices=("cpu",),
    reason="AVX-512",
    is_default=True,
)
OTHER = msgspec.structs.replace(
    LLAMA, name="other", is_supported=False, devices=(), is_default=False, reason="needs a GPU"
)


def test_backends_list_shows_what_this_machine_supports(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/runner/backends", msgspec.to_builtins([LLAMA, OTHER]))
    header, first, second = invoke("backends", "list").stdout.splitlines()
    assert header.startswith("BACKEND    ENGINE")
    columns = [cell for cell in first.split("  ") if cell]
    assert [cell.strip() for cell in columns] == [
        *("llama.cpp", "llama-cpp-python 0.3.36", "gguf", "chat,completion", "yes", "cpu", "*"),
        "AVX-512",
    ]
    assert "  no " in second
    assert second.endswith("needs a GPU")


def test_backends_list_json(invoke: Any, fake: Any) -> None:
    fake.json("GET", "/runner/backends", msgspec.to_builtins([LLAMA]))
    rows = json.loads(invoke("backends", "list", "--json").stdout)
    assert rows[0]["build"] == "abc"


def test_plugins_list_shows_why_one_failed(invoke: Any, fake: Any) -> None:
    good = PluginRow(
        name="file",
        kind="plugin",
        distribution="model-runner",
        version="0.1.0",
        hooks=("runner_register_sources",),
        status="active",
    )
    bad = PluginRow(
        name="bad",
        kind="plugin",
        distribution="bad",
        version="1",
        status="failed",
        error="ImportError",
    )
    fake.json("GET", "/runner/plugins", msgspec.to_builtins([good, bad]))
    _, first, second = invoke("plugins", "list").stdout.splitlines()
    assert first.split() == ["file", "model-runner", "0.1.0", "active", "register_sources"]
    assert second.split() == ["bad", "bad", "1", "failed", "ImportError"]
    assert len(json.loads(invoke("plugins", "list", "--json").stdout)) == 2
