"""Vectors: an encoder against numpy, a causal model against llama.cpp's own pooling."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from runner.api import ContextLengthExceeded, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.model

FOOD = ("A man is eating food.", "A man is eating a meal.", "The stock market fell sharply.")


@pytest.fixture
def minilm(open_driver: Callable[..., Any], minilm_path: Path) -> Any:
    return open_driver(minilm_path, context_size=128, kv_cells=0)


def _bert(tensors: dict[str, NDArray[np.float32]], tokens: list[int]) -> NDArray[np.float64]:
    """all-MiniLM-L6-v2 in numpy: post-norm BERT, mean over tokens, length 1."""
    w = {name: values.astype(np.float64) for name, values in tensors.items() if "ids" not in name}

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        centred = x - x.mean(-1, keepdims=True)
        scaled: NDArray[np.float64] = centred / np.sqrt(
            (centred**2).mean(-1, keepdims=True) + 1e-12
        )
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        y: NDArray[np.float64] = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"]

    n = len(tokens)
    x = w["embeddings.word_embeddings.weight"][tokens]
    x = x + w["embeddings.position_embeddings.weight"][:n]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}").reshape(n, 12, 32).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(32)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(1, 0, 2).reshape(n, 384)
        x = norm(
            x + linear(mixed, f"{name}.attention.output.dense"),
            f"{name}.attention.output.LayerNorm",
        )
        inner = linear(x, f"{name}.intermediate.dense")
        gelu = 0.5 * inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = norm(x + linear(gelu, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    vector: NDArray[np.float64] = x.mean(0)
    vector /= np.linalg.norm(vector)
    return vector


def test_an_encoder_agrees_with_numpy(
    minilm: Any, minilm_tensors: dict[str, NDArray[np.float32]]
) -> None:
    answer = minilm.embed(FOOD[0])
    tokens = list(minilm.engine._vocabulary.tokenise(FOOD[0], add_special=True))
    assert len(tokens) == answer.usage.n_prompt == 8
    (vector,) = answer.vectors()
    assert vector.shape == (384,)
    # The weights are f16 here and f32 there.
    assert float(vector @ _bert(minilm_tensors, tokens)) > 0.9999


def test_vectors_have_length_one_and_say_what_is_alike(minilm: Any) -> None:
    a, b, c = minilm.embed(*FOOD).vectors()
    assert [float(v @ v) for v in (a, b, c)] == pytest.approx([1, 1, 1], abs=1e-5)
    assert float(a @ b) > 0.9
    assert abs(float(a @ c)) < 0.2


def test_a_text_has_the_same_vector_in_any_company(minilm: Any) -> None:
    texts = FOOD * 5
    together = minilm.embed(*texts).vectors()
    assert len(together) == 15
    for text, vector in zip(texts, together, strict=True):
        (alone,) = minilm.embed(text).vectors()
        assert float(vector @ alone) > 0.99999


def test_an_encoder_refuses_what_is_too_long(minilm: Any) -> None:
    with pytest.raises(ContextLengthExceeded) as refusal:
        minilm.embed("fine", "word " * 200)
    assert (refusal.value.n_prompt, refusal.value.context_size) == (202, 128)
    assert refusal.value.param == "input"
    assert minilm.engine.stats().queued == 0


def test_a_cancelled_embedding_says_nothing_more(minilm: Any) -> None:
    from runner.api import EmbeddingRequest

    minilm.engine.submit(EmbeddingRequest(id="gone", inputs=("word " * 100,) * 4))
    minilm.step()
    minilm.engine.cancel("gone")
    n_events = len(minilm.events["gone"])
    minilm.run()
    assert len(minilm.events["gone"]) == n_events
    assert minilm.embed(FOOD[0]).usage.n_prompt == 8


def test_a_causal_model_pools_as_llama_cpp_does(smollm2: Any) -> None:
    """A context made for mean pooling takes the whole text in one call; ours takes chunks."""
    from runner_llamacpp.batch import Batch
    from runner_llamacpp.native import NativeContext, lib

    text = "The quick brown fox jumps over the lazy dog. " * 20
    (vector,) = smollm2.embed(text).vectors()
    tokens = smollm2.engine._vocabulary.tokenise(text, add_special=True)
    assert len(tokens) > 128
    reference = NativeContext(
        smollm2.engine._model,
        n_vocab=smollm2.engine._vocabulary.n_vocab,
        n_ctx=512,
        n_batch=512,
        n_ubatch=512,
        n_threads=1,
        n_threads_batch=1,
        embeddings=True,
        pooling_type=lib.LLAMA_POOLING_TYPE_MEAN,
    )
    batch = Batch(512)
    batch.set_prompt(tokens, 0, 0, output="all")
    assert reference.decode(batch) == 0
    expected = reference.pooled_embedding(0).astype(np.float64)
    reference.close()
    # The reference uses fused attention, which rounds to f16 on the way.
    assert float(vector @ expected) / np.linalg.norm(expected) > 0.9999
    assert float(vector @ vector) == pytest.approx(1, abs=1e-5)


def test_embeddings_and_answers_run_side_by_side(smollm2: Any) -> None:
    alone = smollm2.complete("I like whales", max_tokens=10, ignore_eos=True).text()
    from runner.api import EmbeddingRequest

    chat = smollm2.start_completion("I like whales", max_tokens=10, ignore_eos=True)
    smollm2.step()
    smollm2.engine.submit(EmbeddingRequest(id="e", inputs=("bread and butter", "x")))
    smollm2.run()
    assert smollm2.answer(chat).text() == alone
    vectors = smollm2.answer("e").vectors()
    assert len(vectors) == 2
    again = smollm2.embed("bread and butter", "x").vectors()
    assert all(float(a @ b) > 0.9999 for a, b in zip(vectors, again, strict=True))
    assert smollm2.engine.stats().kv_used == 0


def test_a_causal_model_refuses_what_is_too_long_to_embed(smollm2: Any) -> None:
    with pytest.raises(ContextLengthExceeded) as refusal:
        smollm2.embed("word " * 1500)
    assert refusal.value.param == "input"


@pytest.mark.parametrize("inputs", [(), ((),)])
def test_nothing_cannot_be_embedded(smollm2: Any, inputs: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        smollm2.embed(*inputs)
    assert refusal.value.param == "input"
