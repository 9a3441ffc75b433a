"""``runner pull``: a model into the store, with its progress on a terminal or in lines."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click
import msgspec

from runner.api.errors import RequestError, error_from_wire
from runner.cli.client import decode, error_in, lines
from runner.cli.daemon import connect
from runner.cli.errors import DaemonLost
from runner.cli.words import familiar_name, megabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runner.cli.client import Client

__all__ = ["Progress", "as_reference", "pull", "pull_model"]


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer's share of the progress."""

    id: str = ""
    size: int = 0
    current: int = 0


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``POST /models/create``."""

    type: str = ""
    message: str = ""
    total: int = 0
    layer: Layer = Layer()
    #: With ``error``: its code. With ``success``: the name to run the model by.
    code: str = "internal_error"
    model: str | None = None


class Progress:
    """Adds up what has arrived: each line tells of one layer only."""

    def __init__(self) -> None:
        self._layers: dict[str, Layer] = {}
        self._total = 0

    def add(self, update: Update) -> None:
        """Take in one line."""
        self._total = max(self._total, update.total)
        if update.layer.size or update.layer.current:
            self._layers[update.layer.id] = update.layer

    @property
    def current(self) -> int:
        """Bytes that are here, those of an earlier attempt included."""
        return sum(layer.current for layer in self._layers.values())

    @property
    def total(self) -> int:
        """Bytes of the whole model, as far as they are known."""
        return max(self._total, sum(layer.size for layer in self._layers.values()))


class Display(Protocol):
    """Shows the progress of a pull."""

    def update(self, progress: Progress) -> None:
        """Show where it stands."""


@click.command(short_help="Download a model, or take in a file.")
@click.argument("model")
def pull(model: str) -> None:
    """Download a model into the local store.

    MODEL is a name such as ai/smollm2, or the path of a model file, which is copied into the store.
    """
    reference = as_reference(model)
    with connect() as client:
        name = pull_model(client, reference, err=False)
    click.echo(f"Model {name if reference != model else model} pulled successfully")


def as_reference(model: str) -> str:
    """A path on this machine as an absolute ``file://`` reference; any other name as it is.

    ``./x``, ``../x``, ``/x`` and ``~/x`` are paths; so is a bare name that ends in ``.gguf`` and is
    a file here.

    :raises RequestError: the path leads to no file.
    """
    is_path = model.startswith(("./", "../", "/", "~")) or (
        model.lower().endswith(".gguf") and Path(model).is_file()
    )
    if not is_path:
        return model
    path = Path(model).expanduser().absolute()
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise RequestError(f"{path} {what}: name a model file such as ./model.gguf", param="model")
    return path.as_uri()


def pull_model(client: Client, reference: str, *, err: bool) -> str:
    """Pull a model and return the name to run it by.

    :param err: show progress on stderr, for callers whose stdout is an answer.
    :raises RunnerError: it is not in the store now.
    """
    progress = Progress()
    headers = {"accept": "application/json"}
    with (
        client.stream("POST", "/models/create", {"from": reference}, headers=headers) as response,
        _display(err=err) as display,
    ):
        for line in lines(response):
            update = _update_in(line)
            if update is None:
                continue
            progress.add(update)
            if update.type == "progress":
                display.update(progress)
            elif update.type == "warning":
                click.echo(f"warning: {update.message}", err=True)
            elif update.type == "success":
                return _finish(update, progress, reference, err=err)
    raise DaemonLost(f"pulling {reference} ended before it was complete")


def _finish(update: Update, progress: Progress, reference: str, *, err: bool) -> str:
    if update.message.startswith("Using cached"):
        click.echo(update.message, err=err)
    elif progress.current:
        click.echo(f"Downloaded: {megabytes(progress.current)}", err=err)
    return familiar_name(update.model) if update.model else reference


def _update_in(line: bytes) -> Update | None:
    if not line.strip():
        return None
    raw = decode(line)
    if error := error_in(raw):
        raise error
    update: Update = decode(line, Update)
    if update.type == "error":
        message = update.message.removeprefix("Error: ")
        raise error_from_wire(update.code, message or "the pull failed without a reason")
    return update


@contextmanager
def _display(*, err: bool) -> Iterator[Display]:
    stream = sys.stderr if err else sys.stdout
    if not stream.isatty():
        yield _Lines(lambda text: click.echo(text, err=err))
        return
    # rich takes 60 ms to import; only someone who watches needs it.
    from runner.cli.progress import progress_bar  # noqa: PLC0415

    with progress_bar(stream) as bar:
        yield bar


class _Lines:
    """A line per tenth of the whole, for logs and pipes."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo = echo
        self._tenths = 0

    def update(self, progress: Progress) -> None:
        tenths = 10 * progress.current // progress.total if progress.total else 0
        if self._tenths < tenths < 10:
            self._tenths = tenths
            self._echo(f"Downloaded: {megabytes(progress.current)} of {megabytes(progress.total)}")
