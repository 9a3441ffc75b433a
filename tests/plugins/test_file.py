"""The source ``file``: paths, shards and names."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from runner_file.plugin import FileSource, model_name, runner_register_sources

from runner.api import ModelFileError, ModelNotFound, RequestError, Source
from runner.store import ModelStore, parse_reference

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = FileSource()


def test_the_hook_registers_one_source_that_reads_host_files() -> None:
    registered: list[Source] = []
    runner_register_sources(registered.append)
    (source,) = registered
    assert (source.name, source.is_local, source.reads_host_files) == ("file", False, True)


@pytest.mark.parametrize(
    ("reference", "claimed"),
    [
        ("file:///x/m.gguf", True),
        ("FILE:///x/m.gguf", True),
        ("/x/m.gguf", True),
        ("./m.gguf", True),
        ("../m.gguf", True),
        ("~/m.gguf", True),
        ("file/model", True),
        ("files/model", False),
        ("ai/smollm2", False),
        ("hf.co/org/m", False),
        ("", False),
    ],
)
def test_it_claims_paths_and_its_own_names(reference: str, claimed: bool) -> None:
    assert SOURCE.claims(reference) is claimed


def test_a_file_is_found_by_its_path_and_by_its_url(tmp_path: Path) -> None:
    path = tmp_path / "Äpfel 100%.Q4_K_M.gguf"
    path.write_bytes(b"GGUF")
    for reference in (
        str(path),
        path.as_uri(),
        path.as_uri().replace("file://", "file://localhost"),
    ):
        found = SOURCE.find(reference)
        assert found.weights == (str(path),)
        assert found.name == "file/apfel-100-q4_k_m:latest"


def test_a_file_whose_name_is_not_utf8_is_found(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"m\xff.gguf")
    path.write_bytes(b"GGUF")
    assert SOURCE.find(path.as_uri()).weights == (str(path),)


@pytest.mark.parametrize(
    ("reference", "error", "why"),
    [
        ("/no/such/file.gguf", ModelNotFound, "there is no file /no/such/file.gguf"),
        ("/etc/passwd/x.gguf", ModelNotFound, "there is no file"),
        ("/dev/null", RequestError, "not a regular file"),
        ("/tmp", RequestError, "is a directory"),
        ("./m.gguf", RequestError, "not an absolute path"),
        ("file:m.gguf", RequestError, "m.gguf"),
        ("~/m.gguf", RequestError, "not an absolute path"),
        ("file://elsewhere/m.gguf", RequestError, "another machine"),
        ("/x\0/m.gguf", RequestError, "NUL"),
        ("file:///x%00/m.gguf", RequestError, "NUL"),
        ("/" + "x" * 5000, RequestError, "too long"),
        ("file/model", ModelNotFound, "by its path"),
        ("/x/m-00003-of-00002.gguf", RequestError, "no part 3 of 2"),
    ],
)
def test_what_cannot_be_pulled_is_an_error_that_says_why(
    reference: str, error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=re.escape(why)):
        SOURCE.find(reference)


def test_a_fifo_does_not_hold_it_up(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    os.mkfifo(path)
    with pytest.raises(RequestError, match="not a regular file"):
        SOURCE.find(str(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    with pytest.raises(RequestError, match="Permission denied"):
        SOURCE.find(str(path))


def test_any_shard_finds_all_of_them_in_order(tmp_path: Path) -> None:
    parts = [tmp_path / f"Big-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in parts:
        part.write_bytes(b"GGUF")
    for part in parts:
        found = SOURCE.find(str(part))
        assert found.name == "file/big:latest"
        assert found.weights == tuple(str(path) for path in parts)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00004.gguf"
    with pytest.raises(ModelNotFound, match="there is no file"):
        SOURCE.find(str(first))
    first.write_bytes(b"GGUF")
    (tmp_path / "m-00003-of-00004.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        ModelNotFound, match=r"m-00002-of-00004\.gguf and 1 more parts cannot be found"
    ):
        SOURCE.find(str(first))
    (tmp_path / "m-00002-of-00004.gguf").write_bytes(b"GGUF")
    (tmp_path / "m-00004-of-00004.gguf").mkdir()
    with pytest.raises(RequestError, match=r"m-00004-of-00004\.gguf is a directory"):
        SOURCE.find(str(first))


@given(st.text())
@example("---")
@example("a-._b")
@example("x___y")
@example("..")
@example("x" * 127 + ".y")
def test_every_file_name_gives_a_valid_name(stem: str) -> None:
    name = model_name(stem)
    reference = parse_reference(name, local=("file",))
    assert reference.stored == name
    assert reference.namespace == "file"


@pytest.mark.model
def test_a_real_file_is_pulled_and_a_file_that_is_no_model_is_not(
    tmp_path: Path, smollm2_path: Path
) -> None:
    store = ModelStore.open(tmp_path / "models", sources=[SOURCE])
    stored = store.add(SOURCE.find(smollm2_path.as_uri()), source=SOURCE)
    assert stored.name == "file/smollm2-135m-instruct.q4_1"
    assert stored.config.parameters == "134.52M"
    assert store.load(stored).header.context_length == 8192
    text = tmp_path / "notes.gguf"
    text.write_text("no model at all")
    with pytest.raises(ModelFileError, match=r"notes\.gguf"):
        store.add(SOURCE.find(str(text)), source=SOURCE)
    store.close()
