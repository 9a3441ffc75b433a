"""What people type for a model, and the one full name it stands for.

``gemma3`` becomes ``docker.io/ai/gemma3:latest``. Names in the namespace of a local source
(``embedded/smollm2``) have no registry, so they can never be looked up in one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from runner.api.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Reference", "normalise", "parse_model_id", "parse_reference"]

DEFAULT_REGISTRY = "docker.io"
DEFAULT_ORG = "ai"
DEFAULT_TAG = "latest"
_MAX_NAME = 255
_MAX_TAG = 128

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_HOST_PART = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[0-9a-f:]+\])(?::[0-9]{{1,5}})?")
_TAG = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{_MAX_TAG - 1}}}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})|([0-9a-f]{12})")


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's full name, taken apart."""

    #: Host of the registry; empty for the names of local sources.
    registry: str
    repository: str
    #: None only when there is a digest.
    tag: str | None = DEFAULT_TAG
    #: ``sha256:<64 hex>`` of the manifest; it outranks the tag.
    digest: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether no registry may be asked for it."""
        return not self.registry

    @property
    def namespace(self) -> str:
        """The first part of the repository: ``ai``, ``embedded``."""
        return self.repository.partition("/")[0]

    @property
    def stored(self) -> str:
        """The full name the store keeps: ``docker.io/ai/smollm2:latest``."""
        prefix = f"{self.registry}/" if self.registry else ""
        return prefix + self.repository + self._suffix(self.tag)

    @property
    def familiar(self) -> str:
        """The shortest name that means the same: ``ai/smollm2``."""
        prefix = f"{self.registry}/" if self.registry else ""
        if self.registry == DEFAULT_REGISTRY and not _looks_like_registry(self.namespace):
            prefix = ""
        return (
            prefix + self.repository + self._suffix(None if self.tag == DEFAULT_TAG else self.tag)
        )

    def _suffix(self, tag: str | None) -> str:
        return (f":{tag}" if tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_model_id(text: str) -> str | None:
    """The hex digits (64, or the short form's 12) if the text has the shape of a model ID."""
    match = _MODEL_ID.fullmatch(text.strip())
    return (match[1] or match[2]) if match else None


def parse_reference(text: str, *, local: Collection[str] = ()) -> Reference:
    """Read a name as Docker Model Runner does, and complete it.

    :param local: namespaces of local sources; their names get no registry.
    :raises RequestError: it is not a valid name; the message says which part is wrong.
    """
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    rest = text.strip()
    if not rest:
        raise _invalid(shown, "it is empty")
    if "://" in rest:
        raise _invalid(shown, "it is a URL: leave out the part up to ://")
    rest, at, digest = rest.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(shown, "after @ there must be sha256: and 64 lower-case hex digits")
    name, tag = _split_tag(rest)
    if tag and not _TAG.fullmatch(tag):
        raise _invalid(
            shown, f"a tag has at most {_MAX_TAG} of A-Z a-z 0-9 _ . - and starts with none of . -"
        )
    registry, repository = _split_registry(name.lower(), local)
    _check_name(shown, registry, repository)
    return Reference(
        registry=registry,
        repository=repository,
        tag=tag or (None if digest else DEFAULT_TAG),
        digest=digest or None,
    )


def normalise(text: str, *, local: Collection[str] = ()) -> str:
    """The full name of a reference; a model ID comes back as it is.

    :raises RequestError: as :func:`parse_reference`.
    """
    if parse_model_id(text):
        return text.strip()
    return parse_reference(text, local=local).stored


def _split_tag(text: str) -> tuple[str, str]:
    name, colon, tag = text.rpartition(":")
    # A colon before the last slash is a registry's port.
    if not colon or "/" in tag:
        return text, ""
    return name, tag


def _split_registry(name: str, local: Collection[str]) -> tuple[str, str]:
    if name.startswith("hf.co/"):
        name = "huggingface.co/" + name.removeprefix("hf.co/")
    if "/" not in name:
        name = f"{DEFAULT_ORG}/{name}"
    first, _, rest = name.partition("/")
    registry, repository = (
        (first, rest) if _looks_like_registry(first) else (DEFAULT_REGISTRY, name)
    )
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry != DEFAULT_REGISTRY:
        return registry, repository
    if "/" not in repository:
        repository = f"{DEFAULT_ORG}/{repository}"
    if repository.partition("/")[0] in local:
        return "", repository
    if repository.startswith("library/"):
        repository = f"{DEFAULT_ORG}/{repository.removeprefix('library/')}"
    return registry, repository


def _looks_like_registry(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost"


def _check_name(shown: str, registry: str, repository: str) -> None:
    if len(registry) + 1 + len(repository) > _MAX_NAME:
        raise _invalid(shown, f"the name is longer than {_MAX_NAME} characters")
    if registry and not _REGISTRY.fullmatch(registry):
        raise _invalid(shown, f'"{registry[:80]}" is not the name of a registry')
    for part in repository.split("/"):
        if not _COMPONENT.fullmatch(part):
            raise _invalid(
                shown,
                f'"{part[:80]}" is not a valid part of a name: letters and digits, with single '
                "separators . _ __ - between them",
            )


def _invalid(shown: str, why: str) -> RequestError:
    return RequestError(f'invalid model reference "{shown}": {why}', param="model")
