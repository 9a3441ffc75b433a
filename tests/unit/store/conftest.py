"""A store of its own for each test, and small real model files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from runner.api import FoundModel, ModelNotFound, Source
from runner.store import ModelStore

WriteModel = Callable[..., Path]


class CopiedSource(Source):
    """A source whose models are copied in: a reference is a path."""

    name = "file"

    def claims(self, reference: str) -> bool:
        return reference.startswith("/")

    def find(self, reference: str) -> FoundModel:
        path = Path(reference)
        return FoundModel(name=f"file/{path.stem}", weights=(str(path),))


class InPlaceSource(Source):
    """A local source: it offers what the test puts into ``offered``."""

    name = "shelf"
    is_local = True

    def __init__(self) -> None:
        self.offered: list[FoundModel] = []
        self.failure: Exception | None = None

    def claims(self, reference: str) -> bool:
        return reference.startswith("shelf/")

    def find(self, reference: str) -> FoundModel:
        for found in self.offered:
            if found.name == reference:
                return found
        raise ModelNotFound(reference, hint="put it on the shelf")

    def models(self) -> Sequence[FoundModel]:
        if self.failure is not None:
            raise self.failure
        return list(self.offered)

    def offer(self, name: str, *weights: Path, licenses: Sequence[Path] = ()) -> FoundModel:
        found = FoundModel(
            name=f"shelf/{name}:latest",
            weights=tuple(str(path) for path in weights),
            licenses=tuple(str(path) for path in licenses),
        )
        self.offered = [other for other in self.offered if other.name != found.name] + [found]
        return found


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """Writes a tiny but whole GGUF file; another ``seed`` gives other weights."""
    return lambda name="model.gguf", **options: write_gguf(tmp_path / name, **options)


def write_gguf(
    path: Path, *, seed: int = 0, size: int = 32, metadata: dict[str, int] | None = None
) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_array("test.short", [1, 2, 3])
    writer.add_array("test.long", list(range(60)))
    for key, value in (metadata or {}).items():
        writer.add_uint16(key, value)
    weights = np.random.default_rng(seed).standard_normal((size, size), dtype=np.float32)
    writer.add_tensor("token_embd.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def copied() -> CopiedSource:
    return CopiedSource()


@pytest.fixture
def shelf() -> InPlaceSource:
    return InPlaceSource()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def store(root: Path, copied: CopiedSource, shelf: InPlaceSource) -> Iterator[ModelStore]:
    """An open store that asks its local source every time."""
    opened = ModelStore.open(root, sources=[copied, shelf], local_check_s=0.0)
    yield opened
    opened.close()


@pytest.fixture
def files_of() -> Callable[[Path], set[str]]:
    """The files under a store's root that belong to models."""
    return _files_of


def _files_of(root: Path) -> set[str]:
    folders = ("blobs", "headers", "ingest", "links")
    return {
        str(path.relative_to(root))
        for folder in folders
        for path in (root / folder).rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
