"""``runner list``, ``inspect`` and ``rm``: what is in the store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import msgspec

from runner.api.errors import RunnerError
from runner.cli.client import convert, model_path
from runner.cli.daemon import connect
from runner.cli.tables import print_json, print_table
from runner.cli.words import age, familiar_name, short_id, spaced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["inspect", "list_models", "rm"]


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a model's config that a table shows."""

    parameters: str = ""
    quantization: str = ""
    architecture: str = ""
    size: str = ""


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as ``GET /models`` lists it."""

    id: str
    tags: tuple[str, ...] = ()
    created: int = 0
    config: ModelConfig = ModelConfig()


@click.command("list", short_help="List the models available locally.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the daemon's JSON.")
@click.option("--openai", is_flag=True, help="Print the list in OpenAI's format.")
@click.option("-q", "--quiet", is_flag=True, help="Print model IDs only.")
def list_models(model: str | None, *, as_json: bool, openai: bool, quiet: bool) -> None:
    """List the models available locally, or those of one name."""
    if as_json + openai + quiet > 1:
        raise click.UsageError("--json, --openai and --quiet exclude each other")
    with connect() as client:
        if openai:
            print_json(client.get("/engines/v1/models"))
            return
        answer = client.get("/models")
    rows = [(raw, convert(raw, ListedModel)) for raw in answer]
    if model is not None:
        rows = [(raw, listed) for raw, listed in rows if _is_named(listed, model)]
    if as_json:
        print_json([raw for raw, _ in rows])
    elif quiet:
        for _, listed in rows:
            click.echo(short_id(listed.id))
    else:
        print_table(
            ("MODEL", "PARAMETERS", "QUANTIZATION", "ARCHITECTURE", "MODEL ID", "CREATED", "SIZE"),
            sorted(_table_rows(listed for _, listed in rows), key=_order),
        )


@click.command(short_help="Show everything known about a model.")
@click.argument("model")
@click.option("--openai", is_flag=True, help="Print it in OpenAI's format.")
def inspect(model: str, *, openai: bool) -> None:
    """Show everything known about a model, as JSON."""
    with connect() as client:
        print_json(client.get(model_path(model, "/engines/v1/models" if openai else "/models")))


@click.command(short_help="Remove downloaded models.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("-f", "--force", is_flag=True, help="Remove a model that has several names, too.")
def rm(models: Sequence[str], *, force: bool) -> None:
    """Remove downloaded models.

    A model that has several names loses the one that is given; with its last name it is deleted.
    """
    failures: list[RunnerError] = []
    with connect() as client:
        for model in models:
            params = {"force": "true"} if force else {}
            try:
                removals = client.delete(model_path(model), params)
            except RunnerError as error:
                failures.append(error)
                continue
            for removal in removals or ():
                for what, name in removal.items():
                    click.echo(f"{what}: {name}")
            click.echo(f"Model {model} removed successfully")
    for failure in failures[:-1]:
        click.echo(f"error: {failure.message}", err=True)
    if failures:
        raise failures[-1]


def _is_named(listed: ListedModel, model: str) -> bool:
    wanted = familiar_name(model)
    names = [familiar_name(tag) for tag in listed.tags]
    return any(wanted in {name, name.partition(":")[0]} for name in names)


def _table_rows(models: Iterable[ListedModel]) -> Iterator[tuple[str, ...]]:
    now = time.time()
    for model in models:
        for tag in model.tags or ("<none>",):
            yield (
                familiar_name(tag),
                spaced(model.config.parameters),
                model.config.quantization,
                model.config.architecture,
                short_id(model.id),
                age(model.created, now),
                spaced(model.config.size),
            )


def _order(row: Sequence[str]) -> tuple[str, str]:
    """By name without regard to case; a bare name stands before its variants."""
    name, _, tag = row[0].lower().partition(":")
    return name, tag
