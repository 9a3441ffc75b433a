"""Incremental UTF-8: the pieces never matter."""

from hypothesis import given
from hypothesis import strategies as st

from runner.chat.utf8 import Utf8Decoder


def _decode(pieces: list[bytes]) -> list[str]:
    decoder = Utf8Decoder()
    return [*(decoder.feed(piece) for piece in pieces), decoder.flush()]


@given(st.lists(st.binary(max_size=8)))
def test_any_bytes_in_any_pieces_give_what_decoding_the_whole_gives(pieces: list[bytes]) -> None:
    assert "".join(_decode(pieces)) == b"".join(pieces).decode("utf-8", "replace")


@given(st.text(), st.integers(1, 3))
def test_text_in_pieces_of_few_bytes_comes_out_whole(text: str, size: int) -> None:
    data = text.encode()
    parts = _decode([data[i : i + size] for i in range(0, len(data), size)])
    assert "".join(parts) == text
    assert parts[-1] == ""


def test_a_character_comes_out_with_its_last_byte() -> None:
    decoder = Utf8Decoder()
    assert [decoder.feed(bytes([byte])) for byte in "€".encode()] == ["", "", "€"]


def test_a_character_that_is_never_completed_becomes_one_replacement() -> None:
    assert _decode(["🐋".encode()[:3]]) == ["", "\ufffd"]


def test_invalid_bytes_do_not_wait_for_more() -> None:
    assert Utf8Decoder().feed(b"a\xffb") == "a\ufffdb"
