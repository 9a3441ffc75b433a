"""A model's own chat template: from messages to the prompt it was trained on."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2

from runner.api.errors import RequestError
from runner.chat.sandbox import BoundedEnvironment, TemplateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runner.api.requests import Message

__all__ = ["MAX_SOURCE_CHARS", "ChatTemplate"]

#: Templates in use have up to 20,000 characters; a few carry more in tool descriptions.
MAX_SOURCE_CHARS = 2**20
_EXTRA_CHARS = 2**20


class _Refusal(jinja2.TemplateError):
    """The template called ``raise_exception``: it does not take these messages."""


class ChatTemplate:
    """Renders chats with a jinja2 template in Hugging Face's dialect, in a bounded sandbox.

    A render may take ``timeout_s``, and make a text eight times as long as the messages and a
    mebibyte more. :mod:`runner.chat.sandbox` says what that stops and what it does not. Not
    thread-safe.

    :param source: the template, from the model's file.
    :param bos: text of the beginning-of-sequence token, ``""`` if the model has none.
    :param eos: text of the end-of-sequence token, the same.
    :param clock: the time for templates that put the date into the prompt.
    :raises RequestError: the template itself is broken; the message names the line.
    """

    def __init__(
        self,
        source: str,
        *,
        bos: str,
        eos: str,
        timeout_s: float = 2.0,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise RequestError(
                f"the model's chat template has {len(source)} characters, "
                f"more than the {MAX_SOURCE_CHARS} allowed"
            )
        self._timeout_s = timeout_s
        self._clock = clock or _local_now
        self._environment = _environment(self._clock)
        self._variables = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
        try:
            self._template = self._environment.compile_bounded(source)
        except Exception as exc:
            raise RequestError(
                f"the model's chat template is broken{_where(exc)}: {_reason(exc)}"
            ) from exc

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt for ``messages``.

        :param add_generation_prompt: end with the opening of the assistant's turn.
        :raises RequestError: the template refuses these messages, fails, or exceeds its bounds.
        """
        turns = [_as_template_value(message) for message in messages]
        max_chars = _EXTRA_CHARS + 8 * sum(len(message.content) for message in messages)
        self._environment.start_render(max_chars=max_chars, timeout_s=self._timeout_s)
        pieces: list[str] = []
        n_chars = 0
        try:
            for piece in self._template.generate(
                self._variables, messages=turns, add_generation_prompt=add_generation_prompt
            ):
                n_chars += len(piece)
                self._environment.check_chars(n_chars)
                pieces.append(piece)
        except Exception as exc:
            raise RequestError(
                f"the model's chat template {_verdict(exc)}{_where(exc)}: {_reason(exc)}",
                param="messages",
            ) from exc
        return "".join(pieces)


def _environment(clock: Callable[[], datetime]) -> BoundedEnvironment:
    environment = BoundedEnvironment()
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: clock().strftime(form)
    return environment


def _local_now() -> datetime:
    return datetime.now(tz=UTC).astimezone()


def _as_template_value(message: Message) -> dict[str, Any]:
    """A message as templates know it: a dict, in which an absent name is undefined."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for a prompt: unlike jinja2's own filter it escapes nothing for HTML."""
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateLimit(f"it indents JSON by {indent}")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _verdict(exc: Exception) -> str:
    if isinstance(exc, _Refusal):
        return "refuses these messages"
    return "was stopped" if isinstance(exc, TemplateLimit) else "failed"


def _where(exc: Exception) -> str:
    """`` (line 3)``, the line of the template where it happened, if that can be told."""
    if isinstance(exc, jinja2.TemplateSyntaxError):
        return f" (line {exc.lineno})"
    line, trace = None, exc.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line is not None else ""


def _reason(exc: Exception) -> str:
    text = (exc.message if isinstance(exc, jinja2.TemplateError) else str(exc)) or ""
    if isinstance(exc, _Refusal | TemplateLimit | jinja2.TemplateError) and text:
        return text
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__
