"""Settings: precedence, and errors that name where a bad value came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.api import RequestError
from runner.config import Address, load_settings, parse_address, parse_duration


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('port = 1\nkeep_alive_s = "10m"\nhost = "0.0.0.0"\n')
    env = {"RUNNER_HOME": str(tmp_path), "RUNNER_KEEP_ALIVE": "1h30m"}
    settings = load_settings(env, {"port": 3, "socket_path": None})
    assert (settings.port, settings.keep_alive_s, settings.host) == (3, 5400.0, "0.0.0.0")
    assert settings.models_path == tmp_path / "models"
    assert settings.address == Address(socket=tmp_path / "runner.sock")


def test_a_socket_path_too_long_for_unix_sockets_moves_to_the_runtime_dir(tmp_path: Path) -> None:
    env = {"RUNNER_HOME": str(tmp_path / ("x" * 120)), "XDG_RUNTIME_DIR": "/run/user/1"}
    assert load_settings(env).socket_path.parent == Path("/run/user/1")


def test_dmrs_name_for_the_host_is_an_alias_and_ours_wins(tmp_path: Path) -> None:
    env = {"RUNNER_HOME": str(tmp_path), "MODEL_RUNNER_HOST": "http://a:1"}
    assert load_settings(env).remote == Address(url="http://a:1")
    assert load_settings(env | {"RUNNER_HOST": "unix:///b"}).remote == Address(socket=Path("/b"))


def test_an_empty_list_of_plugins_means_none_and_an_unset_one_means_all(tmp_path: Path) -> None:
    env = {"RUNNER_HOME": str(tmp_path)}
    assert load_settings(env).plugins_allow is None
    assert load_settings(env | {"RUNNER_PLUGINS": ""}).plugins_allow == ()
    assert load_settings(env | {"RUNNER_PLUGINS": "a, b"}).plugins_allow == ("a", "b")


@pytest.mark.parametrize(
    ("env", "toml", "named"),
    [
        ({"RUNNER_QUEUE_LIMIT": "many"}, "", "RUNNER_QUEUE_LIMIT"),
        ({"RUNNER_HOST": "ftp://x"}, "", "RUNNER_HOST"),
        ({"RUNNER_KEEP_ALIVE": "soon"}, "", "RUNNER_KEEP_ALIVE"),
        ({}, "port = 70000", "port"),
        ({}, "prot = 7", "unknown setting prot"),
        ({}, "home = '/x'", "unknown setting home"),
        ({}, "port = = 1", "config.toml"),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_origin(
    tmp_path: Path, env: dict[str, str], toml: str, named: str
) -> None:
    (tmp_path / "config.toml").write_text(toml)
    with pytest.raises(RequestError, match=named):
        load_settings(env | {"RUNNER_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300", 300),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("0", 0),
        ("-1", -1),
        ("-5m", -1),
    ],
)
def test_durations_are_read_as_people_and_dmr_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text())
def test_any_text_is_a_duration_or_a_clear_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except RequestError as error:
        assert error.param == "keep_alive"
    else:
        assert seconds == -1 or seconds >= 0


@pytest.mark.parametrize("text", ["", "unix://relative", "tcp://x", "http://"])
def test_an_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="unix:///path"):
        parse_address(text)
