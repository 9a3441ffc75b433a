"""The interactive chat of ``runner run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import click

from runner.api.errors import RunnerError
from runner.cli.answer import Answer, ask
from runner.cli.main import report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from prompt_toolkit import PromptSession

    from runner.cli.answer import Output, Target
    from runner.cli.client import Client

__all__ = ["Chat", "Reader", "terminal_reader"]

HELP = """\
  /set system TEXT  Set the system message (without TEXT: remove it)
  /clear            Forget the conversation
  /?, /help         Show this help
  /bye, /exit       Leave

Begin and end a message of several lines with \"\"\".
Ctrl-C stops an answer; at the prompt, twice, it leaves. So does Ctrl-D."""


class Reader(Protocol):
    """Reads one line from the user.

    :raises EOFError: Ctrl-D.
    :raises KeyboardInterrupt: Ctrl-C on an empty line.
    """

    def __call__(self, prompt: str) -> str:
        """Ask for a line."""


class Chat:
    """A conversation with one model.

    :param new_output: makes the place where the next answer goes.
    :param on_answer: is told of every answer, finished or not (for ``--debug``).
    """

    def __init__(
        self,
        client: Client,
        target: Target,
        *,
        read: Reader,
        new_output: Callable[[], Output],
        on_answer: Callable[[Answer], None],
        system: str | None = None,
    ) -> None:
        self._client = client
        self._target = target
        self._read = read
        self._new_output = new_output
        self._on_answer = on_answer
        self._system = system
        self._turns: list[dict[str, str]] = []
        self._was_interrupted = False

    def run(self) -> None:
        """Talk until the user leaves."""
        click.echo("Interactive chat mode started. Type '/bye' to exit.")
        while True:
            try:
                text = self._read_message()
            except EOFError:
                break
            except KeyboardInterrupt:
                if self._was_interrupted:
                    break
                self._was_interrupted = True
                click.echo("Press Ctrl-C again, or type /bye, to leave.")
                continue
            if text in {"/bye", "/exit"}:
                break
            self._was_interrupted = False
            if _is_command(text):
                self._command(text)
            elif text:
                self._say(text)
        click.echo("Chat session ended.")

    def _read_message(self) -> str:
        text = self._read("> ").strip()
        if not text.startswith('"""'):
            return text
        text = text[3:]
        while not text.rstrip().endswith('"""'):
            text += "\n" + self._read(". ")
        return text.rstrip()[:-3].strip()

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name in {"/?", "/help"}:
            click.echo(HELP)
        elif name == "/clear":
            self._turns.clear()
            click.echo("Forgot the conversation.")
        elif name == "/set" and rest.split(maxsplit=1)[:1] == ["system"]:
            self._system = rest.strip().removeprefix("system").strip() or None
            click.echo("Set the system message." if self._system else "Removed the system message.")
        elif name == "/set":
            click.echo("Usage: /set system TEXT")
        else:
            click.echo(f"Unknown command '{name}'. Type /? for help")

    def _say(self, text: str) -> None:
        question = {"role": "user", "content": text}
        system = [{"role": "system", "content": self._system}] if self._system else []
        answer = Answer()
        try:
            messages = [*system, *self._turns, question]
            ask(self._client, self._target, messages, answer, self._new_output())
        except KeyboardInterrupt:
            self._was_interrupted = True
        except RunnerError as exc:
            report(exc)
        self._on_answer(answer)
        # Half an answer is part of what was said; a question without one is as if never asked.
        if answer.text:
            self._turns += [question, {"role": "assistant", "content": answer.text}]


def _is_command(text: str) -> bool:
    """``/bye`` is one; ``/etc/hosts is …`` is something to talk about."""
    return text.startswith("/") and "/" not in text.split(maxsplit=1)[0][1:]


def terminal_reader(history: Path) -> Reader:
    """A reader with line editing, and a history that is kept in a file only the user can read."""
    # prompt_toolkit takes 0.12 s to import; only a chat needs it.
    from prompt_toolkit import PromptSession  # noqa: PLC0415
    from prompt_toolkit.history import FileHistory  # noqa: PLC0415
    from prompt_toolkit.output import create_output  # noqa: PLC0415

    history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    history.touch(mode=0o600)
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)), output=create_output(always_prefer_tty=True)
    )

    def read(prompt: str) -> str:
        hint = "Send a message (/? for help)" if prompt == "> " else None
        try:
            return session.prompt(
                prompt, placeholder=[("fg:ansibrightblack", hint)] if hint else None
            )
        except KeyboardInterrupt:
            if session.default_buffer.text:
                return ""
            raise

    return read
