"""How a backend loads models, from its table in ``config.toml``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from runner.api.backend import LoadConfig
from runner.api.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from runner.api.backend import BackendInfo

__all__ = ["load_config"]

Count = Annotated[int, msgspec.Meta(ge=1)]


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    """What every backend understands; the rest of a table is the backend's own options."""

    context_size: Count | None = None
    max_sequences: Count | None = None


def load_config(info: BackendInfo, table: Mapping[str, Any]) -> LoadConfig:
    """The load config that ``[backends."<name>"]`` asks for.

    :raises RequestError: a value is unusable, or there is no such option; lists those there are.
    """
    shared, own = _Common.__struct_fields__, info.options.__struct_fields__
    where = f'config.toml, [backends."{info.name}"]'
    if unknown := sorted(table.keys() - {*shared, *own}):
        raise RequestError(
            f"{where}: there is no option {', '.join(unknown)}; there are {', '.join(shared + own)}"
        )
    try:
        common = msgspec.convert({k: v for k, v in table.items() if k in shared}, _Common)
        options = msgspec.convert({k: v for k, v in table.items() if k in own}, info.options)
    except msgspec.ValidationError as exc:
        raise RequestError(f"{where}: {exc}") from exc
    return LoadConfig(
        context_size=common.context_size, max_sequences=common.max_sequences, options=options
    )
