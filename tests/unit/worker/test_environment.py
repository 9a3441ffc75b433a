from __future__ import annotations

import pytest

from runner.worker.environment import worker_environment


def test_the_environment_is_an_allow_list() -> None:
    environ = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "RUNNER_PLUGINS": "a",
        "OMP_NUM_THREADS": "2",
        "SOMETHING": "x",
        "RUNNER_API_KEY": "secret",
        "HF_TOKEN": "secret",
    }
    assert worker_environment((), environ) == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "RUNNER_PLUGINS": "a",
    }


def test_a_backend_gets_the_names_it_declares() -> None:
    environ = {"OMP_NUM_THREADS": "2", "OMP_OTHER": "3"}
    assert worker_environment(("OMP_NUM_THREADS", "UNSET"), environ) == {"OMP_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "RUNNER_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "hf_token"]
)
def test_a_secret_never_passes_even_if_declared(name: str) -> None:
    assert worker_environment((name,), {name: "secret"}) == {}
