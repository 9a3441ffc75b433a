"""Reading a request body, with errors that name the field at fault."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

import msgspec

from runner.api.errors import RequestError
from runner.openai.parameters import sort_parameters

if TYPE_CHECKING:
    from runner.openai.parameters import Rules

__all__ = ["decode_body", "decode_struct"]

S = TypeVar("S", bound=msgspec.Struct)
T = TypeVar("T")

#: msgspec tells where a value was wrong in its message only: ``… - at `$.messages[0].role```.
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"missing required field `([^`]+)`")


def decode_body(data: bytes, kind: type[S], rules: Rules) -> tuple[S, tuple[str, ...]]:
    """The body as ``kind``, and the names of the parameters that were ignored.

    :raises RequestError: not JSON, or a value of the wrong type or out of range.
    :raises UnsupportedParameter: it asks for something known that this version does not do.
    """
    given = _decode(data, dict[str, msgspec.Raw])
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    unknown = sort_parameters(given, implemented=names, rules=rules)
    return _decode(data, kind), unknown


def decode_struct(data: bytes, kind: type[S]) -> S:
    """The body as ``kind``; names it does not have are ignored.

    :raises RequestError: as for :func:`decode_body`.
    """
    return _decode(data, kind)


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as exc:
        raise _invalid_field(exc) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RequestError(f"the request body is not valid JSON: {exc}") from exc
    except RecursionError as exc:
        raise RequestError("the request body is nested too deeply") from exc


def _invalid_field(exc: msgspec.ValidationError) -> RequestError:
    match = _WHERE.match(str(exc))
    what, path = (match["what"], match["path"]) if match else (str(exc), None)
    if missing := _MISSING.search(what):
        name = f"{path}.{missing[1]}" if path else missing[1]
        return RequestError(f"{name} is required", param=name)
    if not path:
        return RequestError(f"the request body is invalid: {_lower(what)}")
    return RequestError(f"invalid value for {path}: {_lower(what)}", param=path)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
