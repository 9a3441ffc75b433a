"""Adding, finding, loading and removing models."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runner.api import (
    ConflictError,
    FoundModel,
    ModelFileError,
    ModelNotFound,
    RequestError,
    Source,
    StoreError,
)
from runner.store import ModelStore, Removal

WriteModel = Callable[..., Path]


def add(store: ModelStore, source: Source, path: Path, name: str = "file/model") -> str:
    return store.add(FoundModel(name=name, weights=(str(path),)), source=source).id


def test_an_added_model_is_listed_and_can_be_loaded(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    path = write_model()
    stored = store.add(FoundModel(name="file/model", weights=(str(path),)), source=copied)
    assert store.list() == [stored]
    assert stored.tags == ("file/model:latest",)
    assert stored.name == "file/model"
    assert not stored.is_local
    assert stored.size_bytes == path.stat().st_size
    model = store.load(stored)
    assert model.id == stored.id
    assert model.header.architecture == "llama"
    assert model.header.context_length == 2048
    assert Path(model.paths("weights")[0]).read_bytes() == path.read_bytes()


def test_the_config_has_docker_model_runners_fields(
    store: ModelStore, root: Path, copied: Source, write_model: WriteModel
) -> None:
    digest = add(store, copied, write_model())
    manifest = json.loads(blob(root, digest))
    config = json.loads(blob(root, manifest["config"]["digest"]))
    assert config["config"]["format"] == "gguf"
    assert config["config"]["quantization"] == "F32"
    assert config["config"]["parameters"] == "1.02K"
    assert config["config"]["architecture"] == "llama"
    assert config["config"]["context_size"] == 2048
    assert config["config"]["gguf"]["llama.rope.freq_base"] == "10000.000000"
    assert config["config"]["gguf"]["test.short"] == "1, 2, 3"
    assert "test.long" not in config["config"]["gguf"]
    assert "safetensors" not in config["config"]
    assert config["rootfs"] == {"type": "rootfs", "diff_ids": [manifest["layers"][0]["digest"]]}
    assert manifest["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
    assert manifest["layers"][0]["mediaType"] == "application/vnd.docker.ai.gguf.v3"
    assert manifest["layers"][0]["annotations"]["org.cncf.model.filepath"] == "model.gguf"


def blob(root: Path, digest: str) -> bytes:
    return (root / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def test_the_same_file_always_gives_the_same_id(
    tmp_path: Path, store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    path = write_model()
    digest = add(store, copied, path)
    path.chmod(0o600)
    path.touch()
    with_other_store = ModelStore.open(tmp_path / "other", sources=[copied])
    assert add(with_other_store, copied, path, "file/again") == digest
    with_other_store.close()


def test_every_form_of_a_reference_finds_the_model(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    digest = add(store, copied, write_model(), "ai/thing:V1")
    digits = digest.removeprefix("sha256:")
    names = ("thing:V1", "ai/thing:V1", "docker.io/ai/Thing:V1", f"thing@{digest}")
    for form in (*names, digest, digits, digits[:12]):
        assert store.resolve(form).id == digest
    for form in (
        "thing",
        "thing:v1",
        "other/thing:V1",
        "0" * 12,
        "0" * 64,
        f"thing@sha256:{'0' * 64}",
    ):
        with pytest.raises(ModelNotFound):
            store.resolve(form)
    with pytest.raises(RequestError):
        store.resolve("invalid:reference:format")


def test_a_bare_last_name_is_found_only_where_that_is_allowed(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    digest = add(store, copied, write_model(), "reg.io/org/thing:v2")
    assert store.resolve("thing", allow_partial=True).id == digest
    with pytest.raises(ModelNotFound, match="runner pull thing"):
        store.resolve("thing")


def test_a_name_that_moves_leaves_the_other_model_without_one(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    first = add(store, copied, write_model("a.gguf", seed=1), "ai/x")
    second = add(store, copied, write_model("b.gguf", seed=2), "ai/x")
    assert store.resolve("ai/x").id == second
    assert store.resolve(first).tags == ()
    assert store.remove(first) == [Removal(deleted=first)]
    assert [model.id for model in store.list()] == [second]


def test_adding_again_changes_nothing(
    store: ModelStore, root: Path, copied: Source, write_model: WriteModel
) -> None:
    path = write_model()
    add(store, copied, path)
    before = (root / "index.json").read_bytes()
    created = store.list()[0].created
    add(store, copied, path)
    assert (root / "index.json").read_bytes() == before
    assert [model.created for model in store.list()] == [created]


@pytest.mark.parametrize("force", [False, True])
def test_removing_by_name_takes_only_the_name_while_there_are_others(
    store: ModelStore, copied: Source, write_model: WriteModel, force: bool
) -> None:
    path = write_model()
    digest = add(store, copied, path, "ai/one")
    add(store, copied, path, "ai/two:v2")
    assert store.remove("one", force=force) == [Removal(untagged="docker.io/ai/one:latest")]
    assert store.resolve("two:v2").tags == ("docker.io/ai/two:v2",)
    assert store.remove("two:v2", force=force) == [
        Removal(untagged="docker.io/ai/two:v2"),
        Removal(deleted=digest),
    ]
    assert store.list() == []


@pytest.mark.parametrize("form", ["{id}", "{hex}", "{short}", "ai/one@{id}"])
def test_removing_by_id_with_several_names_must_be_forced(
    store: ModelStore, copied: Source, write_model: WriteModel, form: str
) -> None:
    path = write_model()
    digest = add(store, copied, path, "ai/one")
    add(store, copied, path, "ai/two")
    digits = digest.removeprefix("sha256:")
    reference = form.format(id=digest, hex=digits, short=digits[:12])
    with pytest.raises(ConflictError, match=r"\(must be forced\) due to multiple tag references"):
        store.remove(reference)
    assert store.remove(reference, force=True) == [
        Removal(untagged="docker.io/ai/one:latest"),
        Removal(untagged="docker.io/ai/two:latest"),
        Removal(deleted=digest),
    ]
    with pytest.raises(ModelNotFound):
        store.remove(reference)


def test_removing_by_id_with_one_name_needs_no_force(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    digest = add(store, copied, write_model(), "ai/one")
    assert store.remove(digest) == [
        Removal(untagged="docker.io/ai/one:latest"),
        Removal(deleted=digest),
    ]


def test_removing_a_model_keeps_the_blobs_that_another_one_shares(
    store: ModelStore,
    root: Path,
    copied: Source,
    write_model: WriteModel,
    files_of: Callable[[Path], set[str]],
) -> None:
    path = write_model("a.gguf")
    path.with_name("b.gguf").write_bytes(path.read_bytes())
    empty = files_of(root)
    add(store, copied, path, "ai/a")
    only_first = files_of(root)
    add(store, copied, path.with_name("b.gguf"), "ai/b")
    store.remove("ai/b")
    assert files_of(root) == only_first
    store.load(store.resolve("ai/a"))
    store.remove("ai/a")
    assert files_of(root) == empty == set()


@pytest.mark.parametrize(
    "content", [b"", b"GG", b"GGUF\x03\0\0\0", b"<html>not found</html>", b"PK\3\4" * 99]
)
def test_a_file_that_is_no_model_is_refused_and_nothing_stays(
    store: ModelStore,
    root: Path,
    tmp_path: Path,
    copied: Source,
    files_of: Callable[[Path], set[str]],
    content: bytes,
) -> None:
    path = tmp_path / "page.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"page\.gguf"):
        add(store, copied, path)
    assert files_of(root) == set()
    assert store.list() == []


def test_a_truncated_model_is_refused_and_nothing_stays(
    store: ModelStore,
    root: Path,
    copied: Source,
    write_model: WriteModel,
    files_of: Callable[[Path], set[str]],
) -> None:
    good, bad = write_model("good.gguf"), write_model("bad.gguf")
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"bad\.gguf"):
        store.add(FoundModel(name="file/x", weights=(str(good), str(bad))), source=copied)
    assert files_of(root) == set()


def test_one_part_of_a_split_model_is_refused(
    store: ModelStore,
    root: Path,
    copied: Source,
    write_model: WriteModel,
    files_of: Callable[[Path], set[str]],
) -> None:
    path = write_model(metadata={"split.count": 3})
    with pytest.raises(ModelFileError, match="one of 3 parts"):
        add(store, copied, path)
    assert files_of(root) == set()


def test_a_model_in_parts_has_one_header_and_files_in_order(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    parts = [
        write_model(f"m-0000{n}-of-00002.gguf", seed=n, metadata={"split.count": 2}) for n in (1, 2)
    ]
    found = FoundModel(name="file/m", weights=tuple(str(part) for part in parts))
    model = store.load(store.add(found, source=copied))
    assert len(model.header.tensors) == 2
    assert model.header.file_bytes == sum(part.stat().st_size for part in parts)
    assert [Path(path).read_bytes() for path in model.paths("weights")] == [
        p.read_bytes() for p in parts
    ]


def test_progress_is_true_and_what_it_raises_stops_the_work(
    store: ModelStore,
    root: Path,
    copied: Source,
    write_model: WriteModel,
    files_of: Callable[[Path], set[str]],
) -> None:
    class Cancelled(BaseException):
        pass

    path = write_model(size=1600)
    size = path.stat().st_size
    seen: list[tuple[int, int]] = []

    def cancel(done: int, total: int) -> None:
        seen.append((done, total))
        if done > size // 2:
            raise Cancelled

    found = FoundModel(name="file/x", weights=(str(path),))
    with pytest.raises(Cancelled):
        store.add(found, source=copied, progress=cancel)
    assert 0 < seen[0][0] < size
    assert files_of(root) == set()
    seen.clear()
    store.add(found, source=copied, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)


def test_a_full_disk_is_said_before_anything_is_copied(
    store: ModelStore, tmp_path: Path, root: Path, copied: Source, write_model: WriteModel,
    files_of: Callable[[Path], set[str]],
) -> None:  # fmt: skip
    path = write_model("huge.gguf")
    with path.open("r+b") as file:
        file.truncate(2**43)  # sparse: 8 TiB, more than any test machine has free
    with pytest.raises(StoreError, match="not enough disk space"):
        add(store, copied, path)
    assert files_of(root) == set()


def test_a_copy_is_no_hard_link_and_survives_its_source(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    path = write_model()
    content = path.read_bytes()
    add(store, copied, path)
    assert path.stat().st_nlink == 1
    path.write_bytes(b"something else")
    model = store.load(store.resolve("file/model"))
    assert Path(model.paths("weights")[0]).read_bytes() == content


def test_licences_travel_with_the_model(
    store: ModelStore, tmp_path: Path, copied: Source, write_model: WriteModel
) -> None:
    text = tmp_path / "LICENSE"
    text.write_text("Do what is right.")
    found = FoundModel(name="file/x", weights=(str(write_model()),), licenses=(str(text),))
    model = store.load(store.add(found, source=copied))
    assert Path(model.paths("license")[0]).read_text() == "Do what is right."


def test_a_damaged_blob_is_an_error_that_pulling_again_repairs(
    store: ModelStore, root: Path, copied: Source, write_model: WriteModel
) -> None:
    path = write_model()
    digest = add(store, copied, path)
    model = store.load(store.resolve(digest))
    Path(model.files[0].path).write_bytes(b"short")
    with pytest.raises(StoreError, match="has 5 bytes instead of"):
        store.load(store.resolve(digest))
    add(store, copied, path)
    assert Path(store.load(store.resolve(digest)).files[0].path).read_bytes() == path.read_bytes()


def test_a_kept_header_that_does_not_decode_is_parsed_again(
    store: ModelStore, root: Path, copied: Source, write_model: WriteModel
) -> None:
    add(store, copied, write_model())
    (kept,) = (root / "headers" / "sha256").iterdir()
    good = kept.read_bytes()
    kept.write_bytes(b"\x93junk")
    assert store.load(store.resolve("file/model")).header.architecture == "llama"
    assert kept.read_bytes() == good


def test_a_model_removed_meanwhile_is_not_found(
    store: ModelStore, copied: Source, write_model: WriteModel
) -> None:
    add(store, copied, write_model())
    stored = store.resolve("file/model")
    store.remove("file/model")
    with pytest.raises(ModelNotFound):
        store.load(stored)


def test_a_snapshot_is_the_list_without_io(
    root: Path, copied: Source, write_model: WriteModel
) -> None:
    store = ModelStore.open(root, sources=[copied], local_check_s=3600)
    assert store.snapshot() is None
    add(store, copied, write_model())
    listed = store.list()
    assert store.snapshot() == tuple(listed)
    store.remove("file/model")
    assert store.snapshot() is None
    store.close()
    with pytest.raises(StoreError, match="closed"):
        add(store, copied, write_model())


def test_threads_add_list_and_remove_at_once(
    store: ModelStore,
    root: Path,
    copied: Source,
    write_model: WriteModel,
    files_of: Callable[[Path], set[str]],
) -> None:
    """Models share their weights in pairs, so that removals and additions meet at the blobs."""
    paths = [write_model(f"m{n}.gguf", seed=n // 2) for n in range(6)]
    barrier = threading.Barrier(8)

    def churn(path: Path) -> None:
        barrier.wait()
        for _ in range(6):
            add(store, copied, path, f"file/{path.stem}")
            model = store.load(store.resolve(f"file/{path.stem}"))
            data = Path(model.paths("weights")[0]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == model.files[0].digest.removeprefix("sha256:")
            store.remove(f"file/{path.stem}")
        add(store, copied, path, f"file/{path.stem}")

    def watch() -> None:
        barrier.wait()
        for _ in range(100):
            assert len(store.list()) <= len(paths)

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(churn, path) for path in paths] + [pool.submit(watch) for _ in range(2)]
        for job in jobs:
            job.result(timeout=60)
    assert {model.name for model in store.list()} == {f"file/m{n}" for n in range(6)}
    for n in range(6):
        store.remove(f"file/m{n}")
    assert files_of(root) == set()
