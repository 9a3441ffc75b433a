"""The plugin manager, on throw-away distributions that it finds as it would a stranger's."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from runner.api import BackendNotFound, EngineProbe, PluginError, PluginLoadFailed
from runner.plugins import Plugins, load_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runner.config import Settings

    Install = Callable[..., None]

GOOD = """
    from runner.api import *

    @hookimpl
    def runner_backend_info():
        return BackendInfo(name="{name}", description="a test", aliases={aliases}, rank={rank})

    @hookimpl
    def runner_probe_engine():
        return EngineProbe(version="{name} 1")

    @hookimpl
    def runner_hardware_support(machine):
        return HardwareSupport(is_supported=True)

    @hookimpl
    def runner_estimate_memory(model):
        raise RequestError("no")

    @hookimpl
    def runner_load_model(model):
        raise ValueError("boom")
"""


def good(name: str, *, aliases: tuple[str, ...] = (), rank: int = -5) -> str:
    return textwrap.dedent(GOOD.format(name=name, aliases=repr(aliases), rank=rank))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution of one module and one entry point."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def _install(
        name: str, code: str, *, group: str = "runner.backends", dist: str | None = None
    ) -> None:
        dist = dist or f"dist-{name}"
        module = dist.replace("-", "_").replace(".", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")

    yield _install
    for module in set(sys.modules) - before:
        if module.startswith("dist_"):
            del sys.modules[module]


def row(plugins: Plugins, name: str) -> Any:
    return next(r for r in plugins.rows if r.name == name and r.distribution.startswith("dist-"))


def strict(settings: Settings) -> Settings:
    return msgspec.structs.replace(settings, plugins_strict=True)


def test_a_backend_is_found_through_its_entry_point(install: Install, settings: Settings) -> None:
    install("toy", good("toy", aliases=("plaything",)))
    plugins = Plugins.load(settings)
    assert plugins.backend("toy") is plugins.backend("plaything")
    assert row(plugins, "toy").status == "active"
    assert row(plugins, "toy").version == "1.2"
    assert "runner_load_model" in row(plugins, "toy").hooks


def test_first_party_plugins_are_active(settings: Settings) -> None:
    plugins = Plugins.load(strict(settings))
    assert [r.status for r in plugins.rows] == ["active"] * len(plugins.rows)
    assert next(iter(plugins.backends)) == "llama.cpp"
    assert {"embedded", "file"} <= {source.name for source in plugins.sources}


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = 1", "must implement runner_backend_info"),
        (
            good("broken").replace("probe_engine", "prove_engine"),
            "did you mean runner_probe_engine",
        ),
        (good("broken").replace("(machine)", "(machine, weather)"), "weather"),
        (good("broken").replace("@hookimpl\ndef runner_load", "def runner_load"), "not marked"),
        (good("broken").replace("def runner_load", "async def runner_load"), "async"),
        (good("other"), "must be equal"),
        (good("broken").replace('"a test"', '"a test", api_version=99'), "plugin API 99"),
        (good("broken", aliases=("llama.cpp",)), "taken by backend llama.cpp"),
        (good("broken").replace("return BackendInfo", "return 3 or BackendInfo"), "returned 3"),
        (
            good("broken").replace("return BackendInfo", "1 / 0\n    return BackendInfo"),
            "ZeroDivision",
        ),
    ],
)
def test_a_broken_backend_is_one_row_with_the_cause_and_harms_nobody(
    install: Install, settings: Settings, caplog: pytest.LogCaptureFixture, code: str, cause: str
) -> None:
    install("broken", code)
    install("toy", good("toy"))
    plugins = Plugins.load(settings)
    assert row(plugins, "broken").status == "failed"
    assert cause in row(plugins, "broken").error
    assert len(caplog.records) == 1
    assert "dist-broken 1.2" in caplog.text
    assert "toy" in plugins.backends
    with pytest.raises(BackendNotFound, match=r"installed: .*toy"):
        plugins.backend("broken")
    with pytest.raises(PluginLoadFailed, match="broken"):
        load_backend("broken", settings)
    with pytest.raises(PluginLoadFailed, match="broken"):
        Plugins.load(strict(settings))


def test_of_two_plugins_with_one_name_the_second_fails_and_both_are_listed(
    install: Install, settings: Settings
) -> None:
    install("toy", good("toy"), dist="dist-a")
    install("toy", good("toy"), dist="dist-b")
    plugins = Plugins.load(settings)
    rows = [r for r in plugins.rows if r.name == "toy"]
    assert sorted(r.status for r in rows) == ["active", "failed"]
    assert any("taken by dist-" in (r.error or "") for r in rows)
    assert plugins.backend("toy").probe_engine() == EngineProbe(version="toy 1")


def test_plugins_can_be_blocked_and_allowed_by_name(install: Install, settings: Settings) -> None:
    install("toy", "raise RuntimeError('imported')")
    blocked = Plugins.load(msgspec.structs.replace(settings, plugins_block=("toy",)))
    assert row(blocked, "toy").status == "blocked"
    allowed = Plugins.load(msgspec.structs.replace(settings, plugins_allow=("file",)))
    assert [r.name for r in allowed.rows if r.status == "active"] == ["file"]


def test_each_backend_answers_for_itself_alone(install: Install, settings: Settings) -> None:
    install("one", good("one"))
    install("two", good("two"))
    plugins = Plugins.load(settings)
    assert plugins.backend("one").probe_engine().version == "one 1"
    assert plugins.backend("two").probe_engine().version == "two 1"


def test_an_error_in_a_hook_names_backend_and_hook(install: Install, settings: Settings) -> None:
    install("toy", good("toy"))
    toy = Plugins.load(settings).backend("toy")
    nothing: Any = None
    with pytest.raises(PluginError, match="toy: runner_load_model raised ValueError: boom"):
        toy.load_model(model=nothing, config=nothing, placement=nothing, report=nothing)


def test_another_plugin_may_wrap_a_backend_hook_but_not_implement_it(
    install: Install, settings: Settings
) -> None:
    install("toy", good("toy"))
    wrapper = """
        from runner.api import *

        @hookimpl(wrapper=True)
        def runner_probe_engine():
            probe = yield
            return EngineProbe(version=probe.version + " (watched)")
    """
    install("watch", wrapper, group="runner.plugins")
    install("usurp", wrapper.replace("wrapper=True", ""), group="runner.plugins")
    plugins = Plugins.load(settings)
    assert plugins.backend("toy").probe_engine().version == "toy 1 (watched)"
    assert "only wrap it" in row(plugins, "usurp").error


def test_a_source_with_a_taken_namespace_fails_its_own_plugin_only(
    install: Install, settings: Settings
) -> None:
    install(
        "zz-thief",
        """
        from runner.api import *

        class Thief(Source):
            name = "file"
            def claims(self, reference): return True
            def find(self, reference): raise ModelNotFound(reference)

        @hookimpl
        def runner_register_sources(register):
            register(Thief())
        """,
        group="runner.plugins",
    )
    plugins = Plugins.load(settings)
    assert "namespace file is taken" in row(plugins, "zz-thief").error
    assert "file" in {source.name for source in plugins.sources}


def test_the_view_for_a_worker_holds_one_backend(install: Install, settings: Settings) -> None:
    install("toy", good("toy"))
    plugins = Plugins.load(settings, only_backend="toy")
    assert list(plugins.backends) == ["toy"]
    assert load_backend("toy", settings).probe_engine().version == "toy 1"
