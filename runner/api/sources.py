"""Model sources: plugins that know where models come from.

A source owns a namespace, the first part of a model's name (``embedded`` in ``embedded/smollm2``);
no name in an owned namespace is ever looked up in a registry. A source only *finds* bytes: the
store copies or links them, hashes and checks them, and keeps the books.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["FoundModel", "RegisterSource", "Source"]


class FoundModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a source has found on this machine."""

    #: Full name with tag: ``embedded/smollm2:latest``.
    name: str
    #: Absolute paths of the weights, in the order of their shards.
    weights: tuple[str, ...]
    #: Absolute paths of licence texts.
    licenses: tuple[str, ...] = ()


class Source(ABC):
    """Where models come from. Methods are called in the daemon, in a thread."""

    #: ``[a-z][a-z0-9-]*``: the namespace it owns.
    name: str
    #: True: its models are listed and served without a pull, and read in place.
    is_local: bool = False
    #: True: it reads files the *caller* names, so only the Unix socket may ask for it.
    reads_host_files: bool = False

    @abstractmethod
    def claims(self, reference: str) -> bool:
        """Whether a reference, as the user typed it, is this source's. No I/O."""

    @abstractmethod
    def find(self, reference: str) -> FoundModel:
        """Find the model a claimed reference means.

        :raises RunnerError: ``ModelNotFound``, or what stands in the way.
        """

    def models(self) -> Sequence[FoundModel]:
        """All models of a local source; cheap, called often. Others return none."""
        return ()


class RegisterSource(Protocol):
    """The callback given to ``runner_register_sources``; it knows which plugin calls."""

    def __call__(self, source: Source) -> None:
        """Register one source."""
