"""The source ``file``: models that lie as files on this machine.

``runner pull ./model.gguf`` arrives here as ``file:///abs/path/model.gguf``.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from runner.api import FoundModel, ModelNotFound, RequestError, Source, hookimpl

if TYPE_CHECKING:
    from runner.api import RegisterSource

__all__ = ["FileSource", "model_name", "runner_register_sources"]

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.[A-Za-z0-9]+)", re.DOTALL)
_MAX_NAME = 128


class FileSource(Source):
    """Finds a model by the path of its file, or of any of its shards."""

    name = "file"
    reads_host_files = True

    def claims(self, reference: str) -> bool:
        """Paths, ``file:`` URLs, and the names that pulled files get."""
        prefixes = ("file:", "file/", "/", "./", "../", "~")
        return reference.strip().lower().startswith(prefixes)

    def find(self, reference: str) -> FoundModel:
        """The file, with all its shards.

        :raises RequestError: it is no regular, readable file, or not an absolute path.
        :raises ModelNotFound: there is no such file, or a shard is missing.
        """
        path = _path_of(reference.strip())
        shard = _SHARD.fullmatch(path.name)
        if shard is None:
            _check_file(path, reference)
            return FoundModel(name=model_name(path.stem), weights=(str(path),))
        weights = _shards(path, shard, reference)
        return FoundModel(name=model_name(shard[1]), weights=tuple(str(part) for part in weights))


@hookimpl
def runner_register_sources(register: RegisterSource) -> None:
    """Register the source ``file``."""
    register(FileSource())


def model_name(stem: str) -> str:
    """A model's name from its file's: ``Big Model.Q4`` becomes ``file/big-model.q4:latest``."""
    text = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[^a-z0-9._-]+", "-", text)
    # Between letters and digits a name may have one dot, one or two underscores, or dashes.
    text = re.sub(r"[._-]+", _separator, text)[:_MAX_NAME].strip("._-")
    return f"file/{text or 'model'}:latest"


def _separator(match: re.Match[str]) -> str:
    run = match[0]
    return run if run in {".", "_", "__"} or not run.strip("-") else "-"


def _path_of(reference: str) -> Path:
    if reference.lower().startswith("file/"):
        raise ModelNotFound(
            reference, hint="pull the file again by its path, as in runner pull ./model.gguf"
        )
    text = reference
    if reference.lower().startswith("file:"):
        host, slash, rest = reference[len("file:") :].removeprefix("//").partition("/")
        if host not in {"", "localhost"}:
            raise RequestError(
                f'"{reference}" names a file on another machine, {host}', param="from"
            )
        text = os.fsdecode(unquote_to_bytes(slash + rest))
    if "\0" in text:
        raise RequestError("the path of a file has no NUL in it", param="from")
    path = Path(text)
    if not path.is_absolute():
        raise RequestError(
            f'"{reference}" is not an absolute path, and the daemon has another directory',
            param="from",
        )
    return path


def _check_file(path: Path, reference: str) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ModelNotFound(reference, hint=f"there is no file {path}") from None
    except OSError as exc:
        raise RequestError(f"cannot read {path}: {exc.strerror}", param="from") from exc
    if stat.S_ISDIR(mode):
        raise RequestError(f"{path} is a directory: name the model file in it", param="from")
    if not stat.S_ISREG(mode):
        raise RequestError(f"{path} is not a regular file", param="from")
    if not os.access(path, os.R_OK):
        raise RequestError(f"cannot read {path}: Permission denied", param="from")


def _shards(path: Path, shard: re.Match[str], reference: str) -> list[Path]:
    stem, number, total, suffix = shard[1], int(shard[2]), int(shard[3]), shard[4]
    if not 1 <= number <= total:
        raise RequestError(f"{path}: there is no part {number} of {total}", param="from")
    _check_file(path, reference)
    parts = [
        path.with_name(f"{stem}-{part:05}-of-{total:05}{suffix}") for part in range(1, total + 1)
    ]
    missing = [part for part in parts if not part.exists()]
    if missing:
        others = f" and {len(missing) - 1} more parts" if len(missing) > 1 else ""
        raise ModelNotFound(
            reference, hint=f"of its {total} parts, {missing[0]}{others} cannot be found"
        )
    for part in parts:
        _check_file(part, reference)
    return parts
