"""The jinja2 environment that model templates run in: immutable, sandboxed, and bounded.

A template comes with the model, so it is a stranger's program. jinja2's sandbox keeps it away from
Python; the bounds here keep it from hanging or filling the worker, for its neighbours' sake.

What they stop: loops and recursion without end (a deadline, looked at in every turn of a loop and
in every call), and text or numbers that grow beyond any use (operators, string methods and filters
whose result would be too large are refused before they run). What they do not: one operation in C
on data that is large already, such as sorting a long list. That ends, but may end late.
"""

from __future__ import annotations

import functools
import re
import time
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jinja2.parser import Parser
    from jinja2.runtime import Context

__all__ = ["BoundedEnvironment", "TemplateLimit"]

#: Integers beyond this many bits are of no use to a template.
_MAX_INTEGER_BITS = 1024
#: A width or precision in a format string that is worth being suspicious of.
_WIDE_FORMAT = re.compile(r"\d{5}|\*")

#: String methods and filters that add up to a given width, once or per line or tab.
_PADDING = frozenset({"center", "expandtabs", "indent", "ljust", "rjust", "wordwrap", "zfill"})


class TemplateLimit(SecurityError):
    """A template was stopped because it takes too long or makes too much."""


class _GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}``, which trainers use as a mask: just its contents."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _AddBounds(NodeTransformer):
    """Makes every loop look at the clock, and every ``~`` at the size of its result.

    ``EnvironmentAttribute`` is a node that no template can write, so none can get round these.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named after the node type
        self.generic_visit(node)
        tick = _call_environment("tick", [], node)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(tick, node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - the same
        self.generic_visit(node)
        return _call_environment("concatenate", list(node.nodes), node)


def _call_environment(method: str, args: list[nodes.Expr], at: nodes.Node) -> nodes.Call:
    target = nodes.EnvironmentAttribute(method, lineno=at.lineno)
    return nodes.Call(target, args, [], None, None, lineno=at.lineno)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template. Not thread-safe: it keeps the deadline of the render.

    Whitespace, tags and undefined names are treated as Hugging Face's ``apply_chat_template`` does,
    since that is what templates are written for.
    """

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationTag],
        )
        self.globals.pop("lipsum")
        self.filters = {name: self._bounded(call) for name, call in self.filters.items()}
        self._max_chars = 0
        self._deadline = 0.0

    def compile_bounded(self, source: str) -> jinja2.Template:
        """The template of ``source``, with the bounds built in."""
        return self.from_string(_AddBounds().visit(self.parse(source)))

    def start_render(self, *, max_chars: int, timeout_s: float) -> None:
        """Set the bounds of the render that follows."""
        self._max_chars = max_chars
        self._deadline = time.monotonic() + timeout_s

    def tick(self) -> bool:
        """Look at the clock; always True.

        :raises TemplateLimit: the time is over.
        """
        if time.monotonic() > self._deadline:
            raise TemplateLimit("it takes too long to render")
        return True

    def check_chars(self, n_chars: int) -> None:
        """Refuse a text of that length if it is too long.

        :raises TemplateLimit: it is.
        """
        if n_chars > self._max_chars:
            raise TemplateLimit(f"it makes a text of more than {self._max_chars} characters")

    def concatenate(self, *parts: Any) -> str:
        """``a ~ b``, bounded."""
        texts = [str(part) for part in parts]
        self.check_chars(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, if its result cannot be too large."""
        self.tick()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            self._check_text_call(getattr(obj, "__name__", ""), (owner, *args), kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Guard ``str.format`` against fields that pad to any width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and _WIDE_FORMAT.search(value.__self__):
            raise TemplateLimit(
                f"it formats with a width that is too large: {value.__self__[:80]!r}"
            )
        return wrapped

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` if the result cannot be too large."""
        if isinstance(left, int | float) and isinstance(right, int | float):
            _check_arithmetic(operator, left, right)
        elif operator == "*":
            sized, count = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and isinstance(count, int):
                self.check_chars(len(sized) * count)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self.check_chars(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            self._check_text_call("format", (left, right), {})
        return super().call_binop(context, operator, left, right)

    def _bounded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that refuses arguments with which its result would be too large."""
        n_passed = 1 if hasattr(call, "jinja_pass_arg") else 0
        name = call.__name__.removeprefix("do_").removeprefix("sync_do_")

        @functools.wraps(call)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            own = args[n_passed:]
            if own and isinstance(own[0], str):
                self._check_text_call(name, own, kwargs)
            else:
                _check_integers((*own, *kwargs.values()))
                if name == "join" and len(own) > 0:
                    separator = kwargs.get("d", own[1] if len(own) > 1 else "")
                    own = (materialised := list(own[0]), *own[1:])
                    args = (*args[:n_passed], *own)
                    self._check_joined(str(separator), materialised)
            return call(*args, **kwargs)

        return bounded

    def _check_text_call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Bound what a string method or a filter on a string makes of ``args[0]``."""
        text, rest = args[0], (*args[1:], *kwargs.values())
        if name == "replace" and len(rest) >= 2:
            old, new = str(rest[0]), str(rest[1])
            count = text.count(old)
            self.check_chars(len(text) + count * max(0, len(new) - len(old)))
        elif name == "join" and rest:
            self._check_joined(text, rest[0])
        elif name == "format" and _WIDE_FORMAT.search(text):
            raise TemplateLimit(f"it formats with a width that is too large: {text[:80]!r}")
        elif name in _PADDING:
            n_places = 1 + text.count("\n") + text.count("\t")
            widths = [len(value) if isinstance(value, str) else value for value in rest]
            widest = max((abs(width) for width in widths if isinstance(width, int)), default=0)
            self.check_chars(len(text) + n_places * widest)

    def _check_joined(self, separator: str, parts: Iterable[Any]) -> None:
        if isinstance(parts, list | tuple | str):
            lengths = sum(len(part) for part in parts if isinstance(part, str))
            self.check_chars(lengths + len(separator) * len(parts))


def _check_integers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_RANGE:
            raise TemplateLimit(f"it passes a number beyond {MAX_RANGE}")


def _check_arithmetic(operator: str, left: float, right: float) -> None:
    """Refuse integers that would take long to compute with."""
    if not (isinstance(left, int) and isinstance(right, int)):
        return
    bits = (
        left.bit_length() * max(right, 0)
        if operator == "**"
        else left.bit_length() + right.bit_length()
    )
    if bits > _MAX_INTEGER_BITS:
        raise TemplateLimit("it computes with numbers that are too large")
