from __future__ import annotations

import pytest

from runner.cli.tables import print_table
from runner.cli.words import age, binary_size, duration, familiar_name, spaced


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (60, "1 minute"),
        (7199, "1 hour"),
        (3 * 86400, "3 days"),
        (15 * 86400, "2 weeks"),
        (800 * 86400, "2 years"),
    ],
)
def test_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_age_of_the_future_and_of_the_unknown() -> None:
    assert age(100, 50) == "less than a minute ago"
    assert age(0, 50) == "N/A"


def test_sizes_and_quantities() -> None:
    assert binary_size(268_802_458) == "256.35 MiB"
    assert binary_size(12) == "12 B"
    assert binary_size(3 * 2**40) == "3.00 TiB"
    assert spaced("361.82M") == "361.82 M"
    assert spaced("256.35 MiB") == "256.35 MiB"
    assert spaced("unknown") == "unknown"


def test_familiar_names() -> None:
    assert familiar_name("docker.io/ai/smollm2:latest") == "ai/smollm2"
    assert familiar_name("registry:5000/a/b:x") == "registry:5000/a/b:x"


def test_wide_characters_keep_the_columns_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("A", "B"), [("模型", "x"), ("ab", "y")])
    assert capsys.readouterr().out == "A     B\n模型  x\nab    y\n"
