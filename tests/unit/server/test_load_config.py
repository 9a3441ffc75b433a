"""The tables of config.toml that say how backends load models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runner.api.errors import RequestError
from runner.config import load_settings
from runner.server.load_config import load_config
from runner.testing import fake

if TYPE_CHECKING:
    from pathlib import Path

INFO = fake.runner_backend_info()


def test_a_table_sets_what_every_backend_has_and_the_backends_own_options(tmp_path: Path) -> None:
    text = '[backends."fake"]\ncontext_size = 512\ntokens = ["a"]\ndelay_s = 0.5\n'
    (tmp_path / "config.toml").write_text(text)
    settings = load_settings({"RUNNER_HOME": str(tmp_path)})
    config = load_config(INFO, settings.backends["fake"])
    assert (config.context_size, config.max_sequences) == (512, None)
    assert config.options == fake.FakeOptions(tokens=("a",), delay_s=0.5)


def test_without_a_table_everything_is_left_to_the_backend() -> None:
    config = load_config(INFO, {})
    assert (config.context_size, config.max_sequences) == (None, None)
    assert config.options == fake.FakeOptions()


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"treads": 4}, "treads; there are context_size, max_sequences, tokens"),
        ({"context_size": 0}, "context_size"),
        ({"delay_s": "long"}, "delay_s"),
    ],
)
def test_a_bad_table_is_an_error_that_names_it(table: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        load_config(INFO, table)
    assert '[backends."fake"]' in caught.value.message
