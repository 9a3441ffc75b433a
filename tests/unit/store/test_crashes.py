"""A store is whole again at the next open, wherever its process was killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.store import ModelStore

WriteModel = Callable[..., Path]

#: Runs an operation again and again in forked processes, each killed by SIGKILL just before its
#: n-th operation on a file below the store, until one gets through; after each the store is opened
#: and must be clean.
_SCRIPT = r"""
import hashlib, os, signal, shutil, sys
from pathlib import Path
from runner.api import FoundModel, ModelNotFound, Source
from runner.store import ModelStore

class Copied(Source):
    name = "file"
    def claims(self, reference): return False
    def find(self, reference): raise ModelNotFound(reference)

class Shelf(Copied):
    name = "shelf"
    is_local = True
    def models(self): return [FoundModel(name="shelf/b", weights=(LINKED,))]

template, root, operation, FIRST, SECOND, LINKED = sys.argv[1:]
copied, shelf = Copied(), Shelf()
EVENTS = {"open", "os.rename", "os.remove", "os.symlink", "os.mkdir", "os.link"}

def opened(*sources):
    return ModelStore.open(Path(root), sources=[copied, *sources], local_check_s=0.0)

def operate(store):
    if operation == "add":
        store.add(FoundModel(name="file/second", weights=(SECOND,)), source=copied)
    elif operation == "replace":
        store.add(FoundModel(name="file/first", weights=(SECOND,)), source=copied)
    elif operation == "remove":
        store.remove("file/first")
    elif operation == "link":
        store.list()

def check():
    store = opened()
    for model in store.list():
        for file in store.load(model).files:
            digest = "sha256:" + hashlib.sha256(Path(file.path).read_bytes()).hexdigest()
            assert digest == file.digest, file
    names = {model.name for model in store.list()}
    assert operation in ("remove", "replace") or "file/first" in names, names
    assert "shelf/b" not in names
    # Each copied model has a manifest, a config, weights and a header.
    n_files = sum(1 for f in ("blobs", "headers", "links", "ingest")
                  for p in (Path(root) / f).rglob("*") if not p.is_dir() or p.is_symlink())
    assert n_files == 4 * len(store.list()), (n_files, names)
    assert hashlib.sha256(Path(LINKED).read_bytes()).hexdigest() == LINKED_HASH
    tags = sorted(tag for model in store.list() for tag in model.tags)
    store.close()
    return tags

LINKED_HASH = hashlib.sha256(Path(LINKED).read_bytes()).hexdigest()
store = opened()
store.add(FoundModel(name="file/first", weights=(FIRST,)), source=copied)
store.close()
shutil.move(root, template)
n_kills = 0
while True:
    shutil.copytree(template, root, symlinks=True)
    child = os.fork()
    if child == 0:
        left = n_kills
        def hook(event, arguments):
            global left
            if event in EVENTS and root in str(arguments[0]):
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1
        sys.addaudithook(hook)
        store = opened(*([shelf] if operation == "link" else []))
        operate(store)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    tags = check()
    shutil.rmtree(root)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    n_kills += 1
print(n_kills, *tags)
"""


@pytest.mark.parametrize(
    ("operation", "tags", "least"),
    [
        ("add", ["file/first:latest", "file/second:latest"], 20),
        ("replace", ["file/first:latest"], 20),
        ("remove", [], 10),
        ("link", ["file/first:latest"], 20),
    ],
)
def test_killed_before_any_file_operation_the_store_is_clean_at_the_next_open(
    tmp_path: Path, write_model: WriteModel, operation: str, tags: list[str], least: int
) -> None:
    files = [
        write_model(f"{name}.gguf", seed=n) for n, name in enumerate(("first", "second", "linked"))
    ]
    command = [
        sys.executable,
        "-c",
        _SCRIPT,
        tmp_path / "template",
        tmp_path / "root",
        operation,
        *files,
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n_kills, *found = done.stdout.split()
    assert int(n_kills) >= least
    assert found == tags


def test_killed_in_the_middle_of_a_copy_nothing_is_left(
    root: Path, write_model: WriteModel, files_of: Callable[[Path], set[str]]
) -> None:
    script = (
        "import os, sys; from pathlib import Path; from runner.store import ModelStore\n"
        "from runner.api import FoundModel, Source\n"
        "class Copied(Source):\n"
        "    name = 'file'\n"
        "    def claims(self, reference): return False\n"
        "    def find(self, reference): raise LookupError\n"
        "store = ModelStore.open(Path(sys.argv[1]))\n"
        "found = FoundModel(name='file/x', weights=(sys.argv[2],))\n"
        "store.add(found, source=Copied(), progress=lambda *_: os.kill(os.getpid(), 9))\n"
    )
    command = [sys.executable, "-c", script, str(root), str(write_model(size=1600))]
    assert subprocess.run(command, check=False).returncode == -9
    (leftover,) = files_of(root)
    assert leftover.startswith("ingest/")
    store = ModelStore.open(root)
    assert store.list() == []
    assert files_of(root) == set()
    store.close()
