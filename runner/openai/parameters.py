"""What becomes of every parameter a client may send.

A parameter is *implemented* (a field of the body's Struct), or *harmless* (accepted; changes
nothing about the answer), or *known and unsupported* (refused, because ignoring it would change
what the answer means), or *unknown*: accepted, and named to the client in ``x-runner-ignored``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from runner.api.errors import UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CHAT", "COMPLETION", "EMBEDDING", "Rules", "ignored_header", "sort_parameters"]

#: Sent by common clients to tell OpenAI's service something that does not exist here.
_HARMLESS = frozenset(
    {
        "cache_prompt",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
#: Parameters that constrain the output, by whichever server's name, and are always refused.
_CONSTRAINTS: dict[str, tuple[Any, ...]] = dict.fromkeys(
    (
        "grammar",
        "guided_choice",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "json_schema",
        "structured_outputs",
    ),
    (),
)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_NAMED = 32


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How one endpoint treats the parameters that its Struct does not have."""

    harmless: frozenset[str] = _HARMLESS
    #: name -> values that ask for nothing and therefore pass, beside null, [], {} and "".
    unsupported: dict[str, tuple[Any, ...]]


CHAT = Rules(
    unsupported={
        **_CONSTRAINTS,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": (),
        "modalities": (["text"],),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "tools": (),
        "web_search_options": (),
    }
)
COMPLETION = Rules(
    unsupported={
        **_CONSTRAINTS,
        "best_of": (1,),
        "echo": (False,),
        "response_format": ({"type": "text"},),
        "suffix": (),
    }
)
EMBEDDING = Rules(unsupported={"dimensions": ()})


def sort_parameters(
    given: Mapping[str, msgspec.Raw], *, implemented: Iterable[str], rules: Rules
) -> tuple[str, ...]:
    """The unknown ones among the ``given`` parameters.

    :raises UnsupportedParameter: one is known, unsupported, and asks for something.
    """
    unknown = []
    known = set(implemented) | rules.harmless
    for name, raw in given.items():
        if name in known:
            continue
        if (neutral := rules.unsupported.get(name)) is None:
            unknown.append(name)
        elif not _asks_nothing(raw, neutral):
            raise UnsupportedParameter(
                f"{name} is not supported yet by this version of Runner; leave it out", param=name
            )
    return tuple(unknown)


def ignored_header(names: Iterable[str]) -> str:
    """The value of ``x-runner-ignored``; a name that is no identifier is replaced by ``?``."""
    shown = [name if _NAME.fullmatch(name) else "?" for name in names]
    more = len(shown) - _MAX_NAMED
    return ", ".join(shown[:_MAX_NAMED]) + (f", and {more} more" if more > 0 else "")


def _asks_nothing(raw: msgspec.Raw, neutral: tuple[Any, ...]) -> bool:
    value = msgspec.json.decode(raw)
    # `1 == True` in Python, and JSON clients do mean different things by them.
    return value in (None, [], {}, "") or any(
        type(value) is type(passes) and value == passes for passes in neutral
    )
