"""The messages of a chat, and their translation to plain text."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from runner.api.errors import RequestError, UnsupportedParameter
from runner.api.requests import Message

__all__ = ["ChatMessage", "plain_message"]


class TextPart(msgspec.Struct, frozen=True, kw_only=True, tag="text", tag_field="type"):
    """A piece of text."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, kw_only=True, tag="image_url", tag_field="type"):
    """An image; refused by this version."""


class AudioPart(msgspec.Struct, frozen=True, kw_only=True, tag="input_audio", tag_field="type"):
    """A recording; refused by this version."""


class FilePart(msgspec.Struct, frozen=True, kw_only=True, tag="file", tag_field="type"):
    """A file; refused by this version."""


Part = TextPart | ImagePart | AudioPart | FilePart


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of the chat, as the client sends it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None


def plain_message(message: ChatMessage, index: int) -> Message:
    """A message as the engine takes it: text parts joined, roles under the names templates know.

    :raises RequestError: content that is missing, or that is not text.
    """
    where = f"messages[{index}]"
    if message.tool_calls:
        raise UnsupportedParameter(
            f"{where}.tool_calls is not supported yet by this version of Runner; leave it out",
            param=f"{where}.tool_calls",
        )
    # Templates know the older name of the same role.
    role = "system" if message.role == "developer" else message.role
    return Message(role=role, content=_text(message, where), name=message.name)


def _text(message: ChatMessage, where: str) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if message.role == "assistant":
            return ""
        raise RequestError(f"{where}.content is required", param=f"{where}.content")
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, TextPart):
            kind = part.__struct_config__.tag
            place = f"{where}.content[{i}]"
            raise UnsupportedParameter(
                f"{place} is of type {kind}, which is not supported yet by this version of Runner: "
                "send text parts only",
                param=place,
            )
        texts.append(part.text)
    return "\n".join(texts)
