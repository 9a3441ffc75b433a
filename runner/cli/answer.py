"""One answer of a chat, from the wire to the terminal while it is written."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import click
import msgspec

from runner.cli.client import decode, error_in, lines, sse
from runner.cli.errors import DaemonLost

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from runner.cli.client import Client

__all__ = ["Answer", "Asking", "Output", "PlainOutput", "StatusLine", "Target", "ask", "preload"]

#: Control characters in an answer could move the cursor or rename the window. Tab and newline stay.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Which model answers, where, and how."""

    model: str
    #: None leaves the choice to the daemon.
    backend: str | None = None
    #: Further fields of the request, such as ``temperature``.
    options: dict[str, Any] = {}

    @property
    def path(self) -> str:
        """Where its chats go."""
        middle = "" if self.backend is None else f"/{self.backend}"
        return f"/engines{middle}/v1/chat/completions"


class Output(Protocol):
    """Where the text of an answer goes, piece by piece."""

    def write(self, text: str) -> None:
        """Take more of it."""

    def finish(self) -> None:
        """Show what is left and end the line."""


class PlainOutput:
    """Text as it comes."""

    def __init__(self) -> None:
        self._is_tty = sys.stdout.isatty()
        self._last = ""

    def write(self, text: str) -> None:
        """Print it at once."""
        if self._is_tty:
            text = text.translate(_CONTROL)
        if text:
            self._last = text
            click.echo(text, nl=False)

    def finish(self) -> None:
        """End the line, if it is not ended."""
        if self._last and not self._last.endswith("\n"):
            click.echo()
        self._last = ""


class StatusLine:
    """A line on stderr that is gone when the answer begins; nothing unless a person watches."""

    def __init__(self) -> None:
        self._is_tty = sys.stderr.isatty()
        self._is_shown = False

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._is_tty and text:
            width = max(10, shutil.get_terminal_size().columns - 1)
            click.echo(f"\r\x1b[K{text.translate(_CONTROL)[:width]}", nl=False, err=True)
            self._is_shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._is_shown:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._is_shown = False


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer."""

    content: str | None = None
    reasoning_content: str | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers to a request; we ask for one."""

    delta: Delta = Delta()
    finish_reason: str | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What we read of one event of a streamed chat."""

    choices: tuple[Choice, ...] = ()
    usage: Usage | None = None
    timings: dict[str, Any] | None = None
    system_fingerprint: str | None = None
    error: Any = None


class Answer(msgspec.Struct, kw_only=True):
    """What has arrived of an answer; whoever holds it keeps the text of one that was cut short."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: dict[str, Any] = {}
    request_id: str = ""
    #: Backend and version, as the daemon names them.
    engine: str = ""
    started: float = 0.0
    first_token: float | None = None
    ended: float = 0.0


class Asking:
    """Prints the chunks of one answer and collects them."""

    def __init__(self, answer: Answer, output: Output, status: StatusLine) -> None:
        self._answer = answer
        self._output = output
        self._status = status
        self._is_thinking = False

    def take(self, chunk: Chunk) -> None:
        """One chunk of the stream.

        :raises RunnerError: it is an error.
        """
        if error := error_in({"error": chunk.error}):
            raise error
        self._answer.engine = chunk.system_fingerprint or self._answer.engine
        self._answer.usage = chunk.usage or self._answer.usage
        self._answer.timings = chunk.timings or self._answer.timings
        for choice in chunk.choices[:1]:
            self._reasoning(choice.delta.reasoning_content or "")
            self._text(choice.delta.content or "")
            self._answer.finish_reason = choice.finish_reason or self._answer.finish_reason

    def _reasoning(self, text: str) -> None:
        if not text:
            return
        if not self._is_thinking:
            self._is_thinking = True
            text = f"Thinking:\n{text}"
        self._write(text)

    def _text(self, text: str) -> None:
        if not text:
            return
        self._answer.text += text
        if self._is_thinking:
            self._is_thinking = False
            text = f"\n\n--\n\n{text}"
        self._write(text)

    def _write(self, text: str) -> None:
        if self._answer.first_token is None:
            self._answer.first_token = time.monotonic()
            self._status.clear()
        self._output.write(text)


def ask(
    client: Client,
    target: Target,
    messages: Sequence[Mapping[str, str]],
    answer: Answer,
    output: Output,
) -> None:
    """Stream the answer to a conversation into ``output`` and ``answer``.

    An exception, Ctrl-C among them, hangs up, and the daemon stops generating.

    :raises RunnerError: the request failed, at once or after a part of the answer.
    """
    body = {
        "model": target.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **target.options,
    }
    status = StatusLine()
    asking = Asking(answer, output, status)
    answer.started = time.monotonic()
    status.show(f"Waiting for {target.model}…")
    try:
        with client.stream("POST", target.path, body) as response:
            answer.request_id = response.headers.get("x-request-id", "")
            for kind, data in sse(lines(response)):
                if kind == "comment":
                    status.show(f"{target.model}: {data.decode(errors='replace')}")
                elif data == b"[DONE]":
                    break
                else:
                    asking.take(decode(data, Chunk))
            else:
                raise DaemonLost("the answer ended before it was complete")
    finally:
        answer.ended = time.monotonic()
        status.clear()
        output.finish()


def preload(client: Client, target: Target) -> None:
    """Load the model and return when it is ready.

    :raises RunnerError: it cannot be loaded.
    """
    status = StatusLine()
    status.show(f"Loading {target.model}…")
    try:
        body = {"model": target.model, "messages": [{"role": "user", "content": "."}]}
        client.post(target.path, body, headers={"x-preload-only": "true"})
    finally:
        status.clear()
