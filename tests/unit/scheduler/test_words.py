from __future__ import annotations

import pytest

from runner.api.backend import DeviceMemory, MemoryEstimate, Placement
from runner.scheduler import words

from .conftest import record

GIB = 2**30
PLACEMENT = Placement(context_size=8192, kv_cells=8192, max_sequences=1)


def _too_large(weights: int, kv: int, capacity: int) -> str:
    memory = DeviceMemory(device="cpu", weights=weights, kv=kv)
    claim = record(
        1,
        "waiting",
        {"cpu": memory.total},
        estimate=MemoryEstimate(devices=(memory,), placement=PLACEMENT),
    )
    return words.too_large_error(claim, {"cpu": capacity}, "cpu").message


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 MiB"), (1, "1 MiB"), (512 * 2**20, "512 MiB"), (GIB, "1.0 GiB"), (GIB * 9, "9.0 GiB")],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert words.format_bytes(size) == text


def test_a_model_too_large_is_refused_with_the_sum() -> None:
    message = _too_large(weights=6 * GIB, kv=4 * GIB, capacity=8 * GIB)
    assert "ai/m1 needs 10.0 GiB of cpu memory (weights 6.0 GiB, KV cache 4.0 GiB)" in message
    assert "models may use 8.0 GiB" in message


def test_a_smaller_kv_cache_is_advised_when_it_would_fit() -> None:
    message = _too_large(weights=6 * GIB, kv=4 * GIB, capacity=8 * GIB)
    assert "a KV cache of 4096 tokens instead of 8192 would fit" in message


def test_a_smaller_quantization_is_advised_when_the_weights_alone_do_not_fit() -> None:
    assert "at least 2.0 GiB smaller" in _too_large(weights=10 * GIB, kv=GIB, capacity=8 * GIB)


def test_a_missing_device_is_named_with_those_there_are() -> None:
    claim = record(1, "waiting", {"cuda:0": GIB})
    message = words.too_large_error(claim, {"cpu": GIB}, "cuda:0").message
    assert "on cuda:0" in message
    assert "(it has: cpu)" in message


def test_a_load_is_told_with_its_progress() -> None:
    claim = record(1, "loading", {}, progress=0.4, progress_note="weights")
    assert words.note(claim) == "loading 40 %: weights"
