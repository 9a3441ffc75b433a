from __future__ import annotations

import msgspec

from runner.api.backend import LoadConfig
from runner.scheduler import load_key


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    threads: int | None = None
    flags: dict[str, bool] = {}


def test_equal_requests_have_equal_keys() -> None:
    first = LoadConfig(options=_Options(flags={"a": True, "b": False}))
    second = LoadConfig(options=_Options(flags={"b": False, "a": True}))
    assert load_key("x", "1", "sha256:0", first) == load_key("x", "1", "sha256:0", second)


def test_everything_requested_changes_the_key() -> None:
    keys = {
        load_key("x", "1", "sha256:0", LoadConfig()),
        load_key("y", "1", "sha256:0", LoadConfig()),
        load_key("x", "2", "sha256:0", LoadConfig()),
        load_key("x", "1", "sha256:1", LoadConfig()),
        load_key("x", "1", "sha256:0", LoadConfig(context_size=1)),
        load_key("x", "1", "sha256:0", LoadConfig(max_sequences=1)),
        load_key("x", "1", "sha256:0", LoadConfig(options=_Options())),
        load_key("x", "1", "sha256:0", LoadConfig(options=_Options(threads=1))),
    }
    assert len(keys) == 8


def test_a_key_is_a_sha256_in_hex() -> None:
    key = load_key("x", "1", "sha256:0", LoadConfig())
    assert len(bytes.fromhex(key)) == 32
