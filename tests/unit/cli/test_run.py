from __future__ import annotations

import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

CHAT = "/engines/v1/chat/completions"


@pytest.fixture
def model(fake: Any) -> str:
    fake.json("GET", "/models/ai/smollm2", {"id": "sha256:" + "0" * 64})
    return "ai/smollm2"


def asked(fake: Any, path: str = CHAT) -> dict[str, Any]:
    body: dict[str, Any] = fake.requests(path)[-1]["body"]
    return body


def test_run_prints_the_answer_and_ends_the_line(invoke: Any, fake: Any, model: str) -> None:
    fake.chat({"role": "assistant", "content": ""}, "Hello", "! How can I", " help?")
    result = invoke("run", model, "Hi", "there")
    assert result.exit_code == 0
    assert result.stdout == "Hello! How can I help?\n"
    assert result.stderr == ""
    assert asked(fake)["messages"] == [{"role": "user", "content": "Hi there"}]
    assert asked(fake)["stream"] is True


def test_run_appends_piped_text_to_the_prompt(invoke: Any, fake: Any, model: str) -> None:
    fake.chat("ok")
    invoke("run", model, "Sum up:", stdin="first\nsecond\n")
    assert asked(fake)["messages"][0]["content"] == "Sum up:\n\nfirst\nsecond"


def test_run_takes_piped_text_as_the_prompt(invoke: Any, fake: Any, model: str) -> None:
    fake.chat("ok")
    invoke("run", model, stdin="What is this?\n")
    assert asked(fake)["messages"][0]["content"] == "What is this?"


def test_run_without_any_prompt_is_a_usage_error(invoke: Any, fake: Any, model: str) -> None:
    result = invoke("run", model)
    assert result.exit_code == 2
    assert "the prompt is empty" in result.stderr


def test_run_does_not_wait_for_a_standard_input_that_is_no_pipe(fake: Any, model: str) -> None:
    fake.chat("ok")
    command = [sys.executable, "-m", "runner", "run", model, "Hi"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("ok\n", "", 0)


def test_run_refuses_binary_standard_input(fake: Any, model: str) -> None:
    command = [sys.executable, "-m", "runner", "run", model, "Hi"]
    done = subprocess.run(command, input=b"\xff\xfe", capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert b"error: standard input is not UTF-8 text" in done.stderr


def test_options_and_system_message_reach_the_request(invoke: Any, fake: Any, model: str) -> None:
    path = "/engines/llama.cpp/v1/chat/completions"
    fake.chat("ok", path=path)
    args = (
        "--backend",
        "llama.cpp",
        "--system",
        "Be brief",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
    )
    assert invoke("run", *args, model, "Hi").exit_code == 0
    body = asked(fake, path)
    assert body["messages"][0] == {"role": "system", "content": "Be brief"}
    assert body["max_tokens"] == 5
    assert body["temperature"] == 0


def test_text_may_hold_separators_that_are_no_line_ends(invoke: Any, fake: Any, model: str) -> None:
    text = "a\N{LINE SEPARATOR}b\x85c 🐳\n"
    fake.chat(text)
    assert invoke("run", model, "Hi").stdout == text


def test_reasoning_stands_apart_from_the_answer(invoke: Any, fake: Any, model: str) -> None:
    fake.chat({"reasoning_content": "Hm"}, {"reasoning_content": "m."}, "Yes", ".")
    assert invoke("run", model, "Hi").stdout == "Thinking:\nHmm.\n\n--\n\nYes.\n"


def test_comments_of_a_loading_model_leave_no_trace_in_pipes(
    invoke: Any, fake: Any, model: str
) -> None:
    fake.sse(CHAT, ": loading 40 %", fake.chunk("ok"), "data: [DONE]")
    result = invoke("run", model, "Hi")
    assert (result.stdout, result.stderr) == ("ok\n", "")


def test_error_in_the_stream_exits_1_after_what_was_printed(
    invoke: Any, fake: Any, model: str
) -> None:
    error = 'data: {"error": {"message": "worker killed by SIGKILL", "code": "worker_died"}}'
    fake.sse(CHAT, fake.chunk("Half an"), error)
    result = invoke("run", model, "Hi")
    assert result.exit_code == 1
    assert result.stdout == "Half an\n"
    assert result.stderr.startswith("error: worker killed by SIGKILL\nhint: ")


def test_stream_that_breaks_off_exits_1(invoke: Any, fake: Any, model: str) -> None:
    fake.sse(CHAT, fake.chunk("Half an"))
    result = invoke("run", model, "Hi")
    assert result.exit_code == 1
    assert result.stdout == "Half an\n"
    assert "ended before it was complete" in result.stderr


def test_error_before_the_stream_keeps_its_words(invoke: Any, fake: Any, model: str) -> None:
    fake.error("POST", CHAT, 507, "model_too_large", "needs 80 GiB, has 24")
    result = invoke("run", model, "Hi")
    assert result.exit_code == 1
    assert result.stderr == "error: needs 80 GiB, has 24\n"


def test_missing_model_is_pulled_and_then_asked(invoke: Any, fake: Any) -> None:
    fake.error("GET", "/models/ai/new", 404, "model_not_found", "no such model")
    fake.ndjson("/models/create", {"type": "success", "message": "Model pulled successfully"})
    fake.chat("ok")
    result = invoke("run", "ai/new", "Hi")
    assert result.exit_code == 0
    assert result.stdout == "ok\n"
    assert result.stderr == "Unable to find model 'ai/new' locally. Pulling from the server.\n"


def test_failed_pull_is_an_error_and_never_a_chat(invoke: Any, fake: Any) -> None:
    fake.error("GET", "/models/ai/new", 404, "model_not_found", "no such model")
    fake.error("POST", "/models/create", 404, "model_not_found", "no such model anywhere")
    result = invoke("run", "ai/new", "Hi")
    assert result.exit_code == 1
    assert result.stderr.endswith("\nerror: no such model anywhere\n")
    assert fake.requests(CHAT) == []


def test_local_file_is_pulled_and_run_by_its_new_name(
    invoke: Any, fake: Any, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    path.touch()
    done = {"type": "success", "message": "Model pulled successfully", "model": "file/tiny:latest"}
    fake.ndjson("/models/create", done)
    fake.chat("ok")
    assert invoke("run", str(path), "Hi").stdout == "ok\n"
    assert asked(fake)["model"] == "file/tiny"


def test_detach_loads_and_asks_nothing(invoke: Any, fake: Any, model: str) -> None:
    fake.routes["POST", CHAT] = (200, "application/json", b"")
    assert invoke("run", "-d", model).exit_code == 0
    assert fake.requests(CHAT)[0]["headers"]["x-preload-only"] == "true"


def test_debug_tells_the_request_and_its_tokens(invoke: Any, fake: Any, model: str) -> None:
    fake.chat("o", "k")
    result = invoke("run", "--debug", model, "Hi")
    assert result.stdout == "ok\n"
    for line in (
        "request: req-1",
        "prompt tokens: 3",
        "completion tokens: 2",
        "finish reason: stop",
    ):
        assert f"debug: {line}\n" in result.stderr


def test_color_formats_markdown(invoke: Any, fake: Any, model: str) -> None:
    fake.chat("# Title\n\nSome **bold**", " text\n\n```python\nx = 1\n\ny = 2\n```\n")
    output = invoke("run", "--color", "yes", model, "Hi").stdout
    assert "\x1b[1m" in output
    assert "**" not in output
    assert "```" not in output
    assert "Title" in output
    assert "\x1b" not in invoke("run", "--color", "auto", model, "Hi").stdout


def test_ctrl_c_hangs_up_and_exits_130(fake: Any, model: str) -> None:
    hung_up = threading.Event()

    def endless(write: Any) -> None:
        try:
            while not hung_up.wait(0.01):
                write(f"{fake.chunk('la ')}\n\n".encode())
        except OSError:
            hung_up.set()

    fake.routes["POST", CHAT] = (200, "text/event-stream", endless)
    command = [sys.executable, "-m", "runner", "run", model, "Sing"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"la la "
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == b""
    assert hung_up.wait(10)
