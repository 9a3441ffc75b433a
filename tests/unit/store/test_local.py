"""Models of local sources: read in place, never copied, never harmed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.api import ConflictError, FoundModel, ModelFileError, ModelNotFound, StoreError
from runner.store import ModelStore

WriteModel = Callable[..., Path]
Files = Callable[[Path], set[str]]
# The fixtures ``shelf`` and ``copied`` are sources of conftest.py, which tests cannot import.
Shelf = Any


def test_an_offered_model_is_there_without_a_pull(
    store: ModelStore, shelf: Shelf, write_model: WriteModel, tmp_path: Path
) -> None:
    (tmp_path / "LICENSE").write_text("free")
    path = write_model()
    shelf.offer("book", path, licenses=[tmp_path / "LICENSE"])
    (stored,) = store.list()
    assert stored.is_local
    assert stored.tags == ("shelf/book:latest",)
    model = store.load(store.resolve("shelf/book"))
    assert Path(model.paths("weights")[0]).resolve() == path
    assert model.header.architecture == "llama"
    assert store.add(shelf.find("shelf/book:latest"), source=shelf) == stored


def test_it_is_hashed_once_and_survives_a_restart_without_a_write(
    root: Path, shelf: Shelf, write_model: WriteModel
) -> None:
    shelf.offer("book", write_model())
    store = ModelStore.open(root, sources=[shelf])
    first = store.list()
    store.close()
    names = ("index.json", "links", "links/sha256", "blobs/sha256", "headers/sha256")
    before = [(root / name).stat().st_mtime_ns for name in names]
    store = ModelStore.open(root, sources=[shelf])
    assert store.list() == first
    assert [(root / name).stat().st_mtime_ns for name in names] == before
    store.close()


def test_a_model_that_is_not_offered_any_more_vanishes_and_its_file_stays(
    store: ModelStore, root: Path, shelf: Shelf, write_model: WriteModel, files_of: Files
) -> None:
    path = write_model()
    shelf.offer("book", path)
    stored = store.resolve("shelf/book")
    shelf.offered.clear()
    assert store.list() == []
    assert files_of(root) == set()
    assert path.stat().st_size > 0
    with pytest.raises(ModelNotFound, match="put it on the shelf"):
        store.resolve("shelf/book")
    with pytest.raises(ModelNotFound):
        store.load(stored)


def test_models_of_a_source_that_is_gone_vanish(
    root: Path, shelf: Shelf, write_model: WriteModel, files_of: Files
) -> None:
    shelf.offer("book", write_model())
    with_source = ModelStore.open(root, sources=[shelf])
    assert len(with_source.list()) == 1
    with_source.close()
    without = ModelStore.open(root)
    assert without.list() == []
    assert files_of(root) == set()
    without.close()


def test_a_source_that_fails_keeps_its_models_and_spoils_nothing(
    store: ModelStore, shelf: Shelf, copied: Any, write_model: WriteModel, caplog: Any
) -> None:
    shelf.offer("book", write_model())
    store.list()
    shelf.failure = RuntimeError("the shelf is broken")
    store.add(
        FoundModel(name="file/x", weights=(str(write_model("x.gguf", seed=1)),)), source=copied
    )
    assert {model.name for model in store.list()} == {"shelf/book", "file/x"}
    assert "the shelf is broken" in caplog.text


def test_a_changed_file_is_hashed_again_and_the_old_entry_goes(
    store: ModelStore, root: Path, shelf: Shelf, write_model: WriteModel, files_of: Files
) -> None:
    path = write_model()
    shelf.offer("book", path)
    old = store.resolve("shelf/book")
    write_model(seed=7, size=40)
    new = store.resolve("shelf/book")
    assert new.id != old.id
    assert [model.id for model in store.list()] == [new.id]
    store.load(new)
    n_files = len(files_of(root))
    write_model(seed=8, size=48)
    store.list()
    assert len(files_of(root)) == n_files


def test_a_file_that_changes_between_list_and_load_is_an_error_that_names_it(
    root: Path, shelf: Shelf, write_model: WriteModel
) -> None:
    store = ModelStore.open(root, sources=[shelf], local_check_s=3600)
    path = write_model()
    shelf.offer("book", path)
    stored = store.resolve("shelf/book")
    os.utime(path, ns=(1, 1))
    with pytest.raises(StoreError, match=str(path)):
        store.load(stored)
    path.unlink()
    with pytest.raises(StoreError, match=str(path)):
        store.load(stored)
    store.close()


def test_a_file_that_is_no_model_is_reported_once_and_resolves_to_its_problem(
    store: ModelStore, root: Path, shelf: Shelf, tmp_path: Path, files_of: Files, caplog: Any
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"not a model")
    shelf.offer("book", path)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert store.list() == []
    assert len(caplog.records) == 1
    with pytest.raises(ModelFileError, match=r"bad\.gguf"):
        store.resolve("shelf/book")
    assert files_of(root) == set()


def test_a_file_that_is_away_for_a_while_comes_back(
    store: ModelStore, shelf: Shelf, write_model: WriteModel
) -> None:
    path = write_model()
    shelf.offer("book", path)
    stored = store.resolve("shelf/book")
    path.rename(path.with_suffix(".away"))
    with pytest.raises(ModelFileError, match=str(path)):
        store.resolve("shelf/book")
    assert store.list() == []
    path.with_suffix(".away").rename(path)
    assert store.resolve("shelf/book").id == stored.id
    store.load(store.resolve("shelf/book"))


@pytest.mark.parametrize("force", [False, True])
def test_a_local_model_cannot_be_removed_and_the_error_says_what_to_do(
    store: ModelStore, shelf: Shelf, write_model: WriteModel, force: bool
) -> None:
    shelf.offer("book", write_model())
    for reference in ("shelf/book", store.resolve("shelf/book").id):
        with pytest.raises(ConflictError, match="uninstall the package"):
            store.remove(reference, force=force)
    assert len(store.list()) == 1


def test_a_copy_of_a_linked_file_takes_its_place_and_gives_it_back(
    store: ModelStore, shelf: Shelf, copied: Any, write_model: WriteModel, root: Path
) -> None:
    path = write_model()
    shelf.offer("book", path)
    linked = Path(store.load(store.resolve("shelf/book")).files[0].path)
    assert linked.is_symlink()
    store.add(FoundModel(name="file/copy", weights=(str(path),)), source=copied)
    assert not linked.is_symlink()
    assert {tag for model in store.list() for tag in model.tags} == {
        "shelf/book:latest",
        "file/copy:latest",
    }
    store.remove("file/copy")
    assert linked.is_symlink()
    store.load(store.resolve("shelf/book"))
    store.add(FoundModel(name="file/copy", weights=(str(path),)), source=copied)
    shelf.offered.clear()
    path.unlink()
    store.list()
    store.load(store.resolve("file/copy"))


def test_a_source_may_not_take_a_name_outside_its_namespace(
    store: ModelStore, shelf: Shelf, write_model: WriteModel, caplog: Any
) -> None:
    shelf.offered.append(FoundModel(name="ai/smollm2", weights=(str(write_model()),)))
    assert store.list() == []
    assert 'may not name a model "ai/smollm2"' in caplog.text


def test_a_link_that_the_store_did_not_make_is_not_followed(
    store: ModelStore, copied: Any, write_model: WriteModel
) -> None:
    path = write_model()
    store.add(FoundModel(name="file/x", weights=(str(path),)), source=copied)
    stored = store.resolve("file/x")
    blob = Path(store.load(stored).files[0].path)
    blob.unlink()
    blob.symlink_to(path)
    with pytest.raises(StoreError, match="did not make"):
        store.load(stored)
    store.remove("file/x")
    assert path.exists()
    assert not blob.is_symlink()
