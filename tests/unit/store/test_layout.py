"""The directory: who owns it, what else may lie in it, and who else can read it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.api import FoundModel, ModelNotFound, StoreError, StoreLocked
from runner.store import ModelStore, Removal
from runner.store.blobs import digest_hex

WriteModel = Callable[..., Path]
Files = Callable[[Path], set[str]]

skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")


def add(store: ModelStore, source: Any, path: Path, name: str = "ai/x") -> str:
    return store.add(FoundModel(name=name, weights=(str(path),)), source=source).id


def run_skopeo(*arguments: object) -> str:
    command = ["skopeo", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@skopeo
def test_skopeo_reads_the_manifest_by_its_full_name(
    store: ModelStore, root: Path, copied: Any, write_model: WriteModel
) -> None:
    digest = add(store, copied, write_model(), "ai/x:v1")
    raw = run_skopeo("inspect", "--raw", f"oci:{root}:docker.io/ai/x:v1")
    assert raw.encode() == (root / "blobs" / "sha256" / digest_hex(digest)).read_bytes()


@skopeo
def test_skopeo_copies_a_linked_model_whole(
    store: ModelStore, root: Path, tmp_path: Path, shelf: Any, write_model: WriteModel
) -> None:
    path = write_model()
    shelf.offer("book", path)
    layer = store.load(store.resolve("shelf/book")).files[0].digest
    out = tmp_path / "out"
    run_skopeo("--insecure-policy", "copy", f"oci:{root}:shelf/book:latest", f"oci:{out}:x")
    assert (out / "blobs" / "sha256" / digest_hex(layer)).read_bytes() == path.read_bytes()


@skopeo
def test_a_layout_that_skopeo_wrote_is_a_store(
    store: ModelStore, root: Path, tmp_path: Path, copied: Any, write_model: WriteModel
) -> None:
    path = write_model()
    digest = add(store, copied, path)
    other = tmp_path / "other"
    run_skopeo(
        "--insecure-policy", "copy", f"oci:{root}:docker.io/ai/x:latest", f"oci:{other}:ai/x:v2"
    )
    opened = ModelStore.open(other)
    assert opened.resolve("ai/x:v2").id == digest
    model = opened.load(opened.resolve("ai/x:v2"))
    assert Path(model.files[0].path).read_bytes() == path.read_bytes()
    assert opened.remove("x:v2")[-1] == Removal(deleted=digest)
    opened.close()


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(root: Path) -> None:
    store = ModelStore.open(root)
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        ModelStore.open(root)
    script = (
        "import sys; from pathlib import Path; from runner.store import ModelStore\n"
        "from runner.api import StoreLocked\n"
        "try: ModelStore.open(Path(sys.argv[1]))\n"
        "except StoreLocked as exc: print(exc)"
    )
    child = [sys.executable, "-c", script, str(root)]
    answer = subprocess.run(child, check=True, capture_output=True, text=True).stdout
    assert f"process {os.getpid()}" in answer
    store.close()
    store.close()
    ModelStore.open(root).close()


def test_the_lock_of_a_dead_process_does_not_block(root: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from runner.store import ModelStore\n"
        "store = ModelStore.open(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    child = subprocess.run([sys.executable, "-c", script, str(root)], check=False)
    assert child.returncode == -9
    assert (root / ".owner").exists()
    ModelStore.open(root).close()


@pytest.mark.parametrize("name", ["layout.json", "models.json"])
def test_a_store_of_docker_model_runner_is_refused_with_the_way_out(root: Path, name: str) -> None:
    root.mkdir()
    (root / name).write_text("{}")
    with pytest.raises(StoreError, match=r"Docker Model Runner.*MODELS_PATH"):
        ModelStore.open(root)
    assert [path.name for path in root.iterdir()] == [name]


def test_a_directory_with_something_else_is_refused(root: Path) -> None:
    root.mkdir()
    (root / "thesis.doc").write_text("")
    with pytest.raises(StoreError, match=r"thesis\.doc"):
        ModelStore.open(root)
    assert [path.name for path in root.iterdir()] == ["thesis.doc"]


def test_a_file_in_place_of_the_directory_is_refused(root: Path) -> None:
    root.write_text("")
    with pytest.raises(StoreError, match=str(root)):
        ModelStore.open(root)


def test_a_broken_index_is_refused_and_left_alone(root: Path) -> None:
    ModelStore.open(root).close()
    (root / "index.json").write_text('{"schemaVersion": 2, "manifests": [')
    with pytest.raises(StoreError, match=r"index\.json is broken"):
        ModelStore.open(root)
    assert (root / "index.json").read_text() == '{"schemaVersion": 2, "manifests": ['
    (root / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    ModelStore.open(root).close()


def test_a_broken_manifest_hides_its_model_alone_and_can_be_removed(
    store: ModelStore,
    root: Path,
    copied: Any,
    write_model: WriteModel,
    caplog: Any,
    files_of: Files,
) -> None:
    bad = add(store, copied, write_model("a.gguf"), "ai/bad")
    good = add(store, copied, write_model("b.gguf", seed=1), "ai/good")
    store.close()
    (root / "blobs" / "sha256" / digest_hex(bad)).write_bytes(b"{}")
    again = ModelStore.open(root)
    assert [model.id for model in again.list()] == [good]
    assert "ai/bad" in caplog.text
    again.load(again.resolve(good))
    with pytest.raises(StoreError, match="damaged"):
        again.resolve("ai/bad")
    assert again.remove("ai/bad")[-1] == Removal(deleted=bad)
    again.close()
    ModelStore.open(root).close()
    # Manifest, config, weights and header of the good one.
    assert len(files_of(root)) == 4


def test_what_other_tools_have_put_into_the_index_stays(
    root: Path, copied: Any, write_model: WriteModel
) -> None:
    ModelStore.open(root).close()
    config_entry = b'{"mediaType":"x/y","digest":"sha256:%b","size":2}'
    image = b'{"schemaVersion":2,"config":' + config_entry + b',"layers":[]}'
    config = ModelStoreFiles(root).put(b"{}")
    manifest = ModelStoreFiles(root).put(image % config.removeprefix("sha256:").encode())
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": manifest,
        "size": len(image),
        "platform": {"os": "linux", "architecture": "riscv64"},
        "annotations": {"org.opencontainers.image.ref.name": "v1", "org.example.mine": "yes"},
    }
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    store = ModelStore.open(root, sources=[copied])
    assert store.list() == []
    add(store, copied, write_model())
    store.remove("ai/x")
    (kept,) = json.loads((root / "index.json").read_text())["manifests"]
    assert kept["platform"] == entry["platform"]
    assert kept["annotations"]["org.example.mine"] == "yes"
    assert (root / "blobs" / "sha256" / digest_hex(config)).exists()
    store.close()


class ModelStoreFiles:
    """Writes blobs as another tool would."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "blobs" / "sha256"

    def put(self, data: bytes) -> str:
        digits = hashlib.sha256(data).hexdigest()
        (self._folder / digits).write_bytes(data)
        return f"sha256:{digits}"


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "sha256:../../x",
        "sha512:" + "0" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 64 + "\n",
    ],
)
def test_only_a_digest_becomes_part_of_a_path(digest: str) -> None:
    with pytest.raises(StoreError, match="not a digest"):
        digest_hex(digest)


def test_the_hint_for_a_missing_model_is_to_pull_it(store: ModelStore) -> None:
    with pytest.raises(ModelNotFound, match="runner pull ai/smollm2"):
        store.resolve("ai/smollm2")
