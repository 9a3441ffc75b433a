"""``runner run``: one answer, or a chat."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Any

import click

from runner.api.errors import ModelNotFound, NotFoundError, RequestError
from runner.cli.answer import Answer, Output, PlainOutput, Target, Usage, ask, preload
from runner.cli.client import model_path
from runner.cli.daemon import connect
from runner.cli.pull import as_reference, pull_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runner.cli.client import Client

__all__ = ["run"]

#: Silence on standard input after which a person is told what is being waited for.
_STDIN_PATIENCE_S = 1.0


@click.command(short_help="Run a model with a prompt, or chat with it.")
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option(
    "--color",
    type=click.Choice(["auto", "yes", "no"]),
    default="no",
    show_default=True,
    help="Show Markdown formatted and in colour.",
)
@click.option("--debug", is_flag=True, help="Tell timings, tokens and the request's id on stderr.")
@click.option("-d", "--detach", is_flag=True, help="Load the model, and leave.")
@click.option(
    "--backend", metavar="NAME", help="Run it on this backend.  [default: the best that can]"
)
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="End the answer after this many tokens."
)
@click.option(
    "--temperature", type=click.FloatRange(0, 2), help="0 takes the likeliest token every time."
)
def run(
    *,
    model: str,
    prompt: Sequence[str],
    color: str,
    debug: bool,
    detach: bool,
    backend: str | None,
    system: str | None,
    **options: Any,
) -> None:
    """Run a model with a PROMPT, or chat with it if there is none.

    A model that is not in the store yet is pulled. Text piped in is added to the prompt.
    """
    question = None if detach else _question(prompt)
    if question == "":
        raise click.UsageError("the prompt is empty: pass one, or run this on a terminal to chat")
    with connect() as client:
        target = Target(
            model=_available(client, model),
            backend=backend,
            options={name: value for name, value in options.items() if value is not None},
        )
        if detach:
            preload(client, target)
            return
        new_output = _outputs(color)
        on_answer = _debug if debug else _ignore
        if question is None:
            _chat(client, target, new_output=new_output, on_answer=on_answer, system=system)
            return
        answer = Answer()
        messages = [{"role": "system", "content": system}] if system else []
        try:
            ask(
                client,
                target,
                [*messages, {"role": "user", "content": question}],
                answer,
                new_output(),
            )
        finally:
            on_answer(answer)


def _question(prompt: Sequence[str]) -> str | None:
    """Prompt and piped text as one message; None when there is neither and someone can be asked."""
    words = " ".join(prompt)
    if sys.stdin is None or sys.stdin.isatty():
        return words or None
    return "\n\n".join(part for part in (words, _piped_text()) if part.strip())


def _piped_text() -> str:
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        # No descriptor behind it: a test's stand-in, which has its text at hand.
        return sys.stdin.read().rstrip("\n")
    if stat.S_ISCHR(kind):
        return ""
    if not select.select([sys.stdin], [], [], _STDIN_PATIENCE_S)[0] and sys.stderr.isatty():
        click.echo("Waiting for the end of standard input (or run with </dev/null)…", err=True)
    data = sys.stdin.buffer.read()
    try:
        return data.decode().rstrip("\n")
    except UnicodeDecodeError as exc:
        raise RequestError(f"standard input is not UTF-8 text (at byte {exc.start})") from exc


def _available(client: Client, model: str) -> str:
    """The name of a model that is in the store, pulled if it was not.

    :raises RunnerError: it could not be pulled.
    """
    reference = as_reference(model)
    if reference != model:
        return pull_model(client, reference, err=True)
    try:
        client.get(model_path(model))
    except NotFoundError as error:
        if not isinstance(error, ModelNotFound) and error.code != NotFoundError.code:
            raise
        click.echo(f"Unable to find model '{model}' locally. Pulling from the server.", err=True)
        return pull_model(client, model, err=True)
    return model


def _outputs(color: str) -> Callable[[], Output]:
    if color == "no" or (color == "auto" and not sys.stdout.isatty()):
        return PlainOutput
    # rich takes 60 ms to import.
    from runner.cli.markdown import MarkdownOutput  # noqa: PLC0415

    return MarkdownOutput


def _chat(
    client: Client,
    target: Target,
    *,
    new_output: Callable[[], Output],
    on_answer: Callable[[Answer], None],
    system: str | None,
) -> None:
    from runner.cli.chat import Chat, terminal_reader  # noqa: PLC0415 - needed by a chat only
    from runner.config import load_settings  # noqa: PLC0415

    # Before the first prompt: a model that cannot be loaded is no chat.
    preload(client, target)
    read = terminal_reader(load_settings().home / "history")
    Chat(client, target, read=read, new_output=new_output, on_answer=on_answer, system=system).run()


def _ignore(answer: Answer) -> None:
    """The opposite of ``--debug``."""


def _debug(answer: Answer) -> None:
    """Tell what an answer took."""
    first_s = (answer.first_token or answer.ended) - answer.started
    decode_s = answer.ended - (answer.first_token or answer.ended)
    usage = answer.usage or Usage()
    n_completion = usage.completion_tokens
    rate = (
        f"{(n_completion - 1) / decode_s:.1f} tokens/s"
        if n_completion > 1 and decode_s > 0
        else "-"
    )
    facts = {
        "request": answer.request_id,
        "engine": answer.engine,
        "finish reason": answer.finish_reason,
        "first token": f"{first_s:.3f} s",
        "total": f"{answer.ended - answer.started:.3f} s",
        "prompt tokens": usage.prompt_tokens,
        "completion tokens": n_completion,
        "rate": rate,
        **answer.timings,
    }
    for name, value in facts.items():
        if value is not None and value != "":
            shown = f"{value:.1f}" if isinstance(value, float) else value
            click.echo(f"debug: {name}: {shown}", err=True)
