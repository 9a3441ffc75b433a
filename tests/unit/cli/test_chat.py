from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.cli.answer import Answer, PlainOutput, Target
from runner.cli.chat import Chat
from runner.cli.client import Client
from runner.cli.markdown import BlockSplitter
from runner.config import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runner.config import Settings

CHAT = "/engines/v1/chat/completions"


class Script:
    """A user who types these lines; an exception is a key, and the end is Ctrl-D."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = iter(lines)
        self.prompts: list[str] = []

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = next(self._lines, EOFError)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def client(settings: Settings, fake: Any) -> Iterator[Client]:
    with Client(Address(socket=settings.socket_path)) as client:
        yield client


@pytest.fixture
def talk(client: Client, capsys: pytest.CaptureFixture[str]) -> Any:
    """Plays a script and returns what was printed, without the first and the last line."""

    def talk(*lines: str | type[BaseException], output: Any = PlainOutput) -> list[str]:
        chat = Chat(
            client,
            Target(model="m"),
            read=Script(*lines),
            new_output=output,
            on_answer=lambda answer: None,
        )
        chat.run()
        first, *middle, last = capsys.readouterr().out.splitlines()
        assert first == "Interactive chat mode started. Type '/bye' to exit."
        assert last == "Chat session ended."
        return middle

    return talk


def messages(fake: Any, index: int = -1) -> list[tuple[str, str]]:
    body = fake.requests(CHAT)[index]["body"]
    return [(message["role"], message["content"]) for message in body["messages"]]


def test_chat_remembers_what_was_said(talk: Any, fake: Any) -> None:
    fake.chat("Hi there!")
    assert talk("Hi", "", "And you?", "/bye", "never read") == ["Hi there!", "Hi there!"]
    assert messages(fake) == [("user", "Hi"), ("assistant", "Hi there!"), ("user", "And you?")]


def test_chat_ends_at_ctrl_d(talk: Any) -> None:
    assert talk() == []


def test_ctrl_c_at_the_prompt_leaves_the_second_time(talk: Any) -> None:
    hint = "Press Ctrl-C again, or type /bye, to leave."
    assert talk(KeyboardInterrupt, KeyboardInterrupt, "never read") == [hint]


def test_ctrl_c_stops_an_answer_and_then_leaves(talk: Any, fake: Any) -> None:
    fake.chat("One", " two")

    class Interrupted(PlainOutput):
        def write(self, text: str) -> None:
            super().write(text)
            raise KeyboardInterrupt

    assert talk("Count", "Go on", KeyboardInterrupt, output=Interrupted) == ["One", "One"]
    assert messages(fake) == [("user", "Count"), ("assistant", "One"), ("user", "Go on")]


def test_question_that_failed_is_forgotten(
    talk: Any, fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.error("POST", CHAT, 400, "context_length_exceeded", "the prompt is too long")
    assert talk("long", "short") == []
    assert messages(fake) == [("user", "short")]


def test_set_system_and_clear(talk: Any, fake: Any) -> None:
    fake.chat("ok")
    talk("/set system Be brief", "a", "/clear", "b", "/set system", "c")
    assert messages(fake, 0) == [("system", "Be brief"), ("user", "a")]
    assert messages(fake, 1) == [("system", "Be brief"), ("user", "b")]
    assert messages(fake, 2) == [("user", "b"), ("assistant", "ok"), ("user", "c")]


def test_unknown_command_and_help(talk: Any) -> None:
    assert talk("/frob x") == ["Unknown command '/frob'. Type /? for help"]
    assert any("/bye" in line for line in talk("/?"))
    assert talk("/set nonsense") == ["Usage: /set system TEXT"]


def test_path_is_no_command(talk: Any, fake: Any) -> None:
    fake.chat("ok")
    assert talk("/etc/hosts is what?") == ["ok"]


def test_message_of_several_lines(talk: Any, fake: Any) -> None:
    fake.chat("ok")
    talk('"""first', "", 'third"""', '"""one"""', '"""', "in between", '"""')
    assert messages(fake, 0) == [("user", "first\n\nthird")]
    assert messages(fake, 1)[-1] == ("user", "one")
    assert messages(fake, 2)[-1] == ("user", "in between")


def test_answer_is_told_of_when_it_failed_too(client: Client, fake: Any) -> None:
    fake.error("POST", CHAT, 400, "invalid_request", "no")
    told: list[Answer] = []
    read = Script("x")
    Chat(client, Target(model="m"), read=read, new_output=PlainOutput, on_answer=told.append).run()
    assert [answer.text for answer in told] == [""]
    assert read.prompts == ["> ", "> "]


@given(st.lists(st.text(st.sampled_from("a \n`~#"), max_size=12)))
def test_blocks_lose_nothing_and_do_not_depend_on_the_pieces(pieces: list[str]) -> None:
    splitter, whole = BlockSplitter(), BlockSplitter()
    blocks = [block for piece in pieces for block in splitter.feed(piece)]
    assert blocks == whole.feed("".join(pieces))
    assert "".join(blocks) + splitter.rest == "".join(pieces)


def test_fenced_code_is_one_block() -> None:
    splitter = BlockSplitter()
    assert splitter.feed("text\n\n````\na\n\n```\n````\nrest") == [
        "text\n\n",
        "````\na\n\n```\n````\n",
    ]
    assert splitter.rest == "rest"
