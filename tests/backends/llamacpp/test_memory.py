"""The estimate, from headers alone."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runner_llamacpp.kvsize import read_kv_shape
from runner_llamacpp.memory import estimate_memory, n_outputs
from runner_llamacpp.options import LlamaCppOptions

from runner.api import (
    Budget,
    LoadConfig,
    Machine,
    MemoryEstimate,
    ModelHeader,
    TensorInfo,
    UnsupportedOperation,
)
from runner.api.model import ArraySummary
from runner.formats import read_model_header

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
GIB = 2**30


def _header(architecture: str, n_vocab: int = 32000, **values: Any) -> ModelHeader:
    metadata = {f"{architecture}.{key.replace('__', '.')}": v for key, v in values.items()}
    metadata["tokenizer.ggml.tokens"] = ArraySummary(element="string", length=n_vocab)
    tensors = (
        TensorInfo(name="token_embd.weight", shape=(64, 64), dtype="Q4_0", size_bytes=10 * MIB),
        TensorInfo(name="blk.0.ffn_up.weight", shape=(64, 64), dtype="Q4_0", size_bytes=20 * MIB),
        TensorInfo(name="blk.0.ffn_norm.weight", shape=(64,), dtype="F32", size_bytes=256),
    )
    return ModelHeader(
        format="gguf",
        version=3,
        architecture=architecture,
        metadata=metadata,
        tensors=tensors,
        file_bytes=31 * MIB,
    )


SMOLLM2 = _header(
    "llama",
    n_vocab=49152,
    block_count=30,
    context_length=8192,
    embedding_length=576,
    feed_forward_length=1536,
    attention__head_count=9,
    attention__head_count_kv=3,
)
GEMMA = _header(
    "gemma3",
    n_vocab=262144,
    block_count=18,
    context_length=32768,
    embedding_length=640,
    feed_forward_length=2048,
    attention__head_count=4,
    attention__head_count_kv=1,
    attention__key_length=256,
    attention__value_length=256,
    attention__sliding_window=512,
)
LLAMA_8B = _header(
    "llama",
    n_vocab=128256,
    block_count=32,
    context_length=131072,
    embedding_length=4096,
    feed_forward_length=14336,
    attention__head_count=32,
    attention__head_count_kv=8,
)


def _estimate(
    header: ModelHeader, machine: Machine, *, gib: float = 16, **config: Any
) -> MemoryEstimate:
    options = LlamaCppOptions(**config.pop("options", {}))
    return estimate_memory(
        header,
        LoadConfig(options=options, **config),
        machine,
        Budget(devices={"cpu": int(gib * GIB)}),
    )


@pytest.mark.parametrize(
    ("header", "cells", "kv_type", "n_sequences", "mib"),
    [
        (SMOLLM2, 4096, "f16", 8, 90),
        (SMOLLM2, 4096, "q8_0", 8, 47.8),
        (SMOLLM2, 32768, "f16", 8, 720),
        (SMOLLM2, 32768, "q8_0", 8, 382.5),
        (GEMMA, 4096, "f16", 8, 72),
        (GEMMA, 4096, "q8_0", 8, 38.25),
        (GEMMA, 32768, "f16", 8, 163.5),
        (GEMMA, 32768, "q8_0", 8, 86.9),
        (GEMMA, 4096, "f16", 1, 27),
        (GEMMA, 32768, "f16", 1, 111),
    ],
)
def test_the_kv_size_is_what_llama_cpp_logs(
    header: ModelHeader, cells: int, kv_type: Literal["f16", "q8_0"], n_sequences: int, mib: float
) -> None:
    size = read_kv_shape(header).size_bytes(
        cells, n_sequences=n_sequences, n_ubatch=512, kv_type=kv_type
    )
    assert size / MIB == pytest.approx(mib, abs=0.06)


@pytest.mark.model
def test_real_headers_give_the_same(smollm2_path: Path, gemma_path: Path) -> None:
    for path, mib in ((smollm2_path, 90), (gemma_path, 72)):
        shape = read_kv_shape(read_model_header(path))
        size = shape.size_bytes(4096, n_sequences=8, n_ubatch=512, kv_type="f16")
        assert size == mib * MIB


@pytest.mark.model
@pytest.mark.parametrize("name", ["smollm2_path", "gemma_path"])
def test_the_estimate_is_what_the_context_takes(
    name: str, machine: Machine, request: pytest.FixtureRequest
) -> None:
    """KV as llama.cpp logs it, to its rounding; compute not less, and at most twice as much."""
    from runner_llamacpp.native import lib, native_log

    path: Path = request.getfixturevalue(name)
    estimate = _estimate(read_model_header(path), machine, context_size=4096)
    (memory,) = estimate.devices
    lines: list[str] = []
    callback = lib.llama_log_callback(lambda _level, text, _data: lines.append(text.decode()))
    log = native_log()
    lib.llama_log_set(callback, None)
    try:
        open_context(path, estimate)
    finally:
        lib.llama_log_set(log.callback, None)
    sizes = _buffer_sizes(lines)
    assert sizes["KV"] == pytest.approx(memory.kv / MIB, abs=0.02)
    reserved = sizes["compute"] + sizes["output"]
    assert reserved - 2 <= memory.compute / MIB <= 2 * reserved + 2


def open_context(path: Path, estimate: MemoryEstimate) -> None:
    from runner_llamacpp.native import NativeContext, NativeModel, lib

    placement = estimate.placement
    model = NativeModel([str(path)], repack=False, on_progress=lambda _: None)
    context = NativeContext(
        model,
        n_vocab=1,
        n_ctx=placement.kv_cells,
        n_batch=512,
        n_ubatch=LlamaCppOptions().ubatch_size,
        flash_attn_type=lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
        n_seq_max=placement.max_sequences,
        n_outputs_max=n_outputs(
            read_model_header(path).array_length("tokenizer.ggml.tokens"), placement.max_sequences
        ),
        kv_unified=True,
        swa_full=False,
    )
    context.close()
    model.close()


def _buffer_sizes(lines: list[str]) -> dict[str, float]:
    """``… CPU KV buffer size = 90.00 MiB``, summed by kind."""
    sizes = {"KV": 0.0, "compute": 0.0, "output": 0.0}
    for line in "".join(lines).splitlines():
        found = re.search(r"(KV|compute|output) buffer size = +([\d.]+) MiB", line)
        if found:
            sizes[found[1]] += float(found[2])
    return sizes


def test_a_small_model_gets_its_trained_context_and_no_more(machine: Machine) -> None:
    estimate = _estimate(SMOLLM2, machine)
    placement = estimate.placement
    assert (placement.context_size, placement.kv_cells, placement.max_sequences) == (8192, 8192, 16)
    assert estimate.by_device()["cpu"] < 500 * MIB
    assert "what it was trained for" in estimate.reason


def test_a_huge_trained_context_leaves_room_for_others(machine: Machine) -> None:
    estimate = _estimate(LLAMA_8B, machine, gib=20)
    assert 8192 <= estimate.placement.context_size < 131072
    assert estimate.devices[0].kv <= 5 * GIB
    assert "131072" in estimate.reason


def test_what_is_asked_is_obeyed(machine: Machine) -> None:
    estimate = _estimate(LLAMA_8B, machine, gib=1, context_size=65536, max_sequences=2)
    placement = estimate.placement
    assert (placement.context_size, placement.max_sequences) == (65536, 2)
    assert placement.kv_cells == 65536
    assert estimate.by_device()["cpu"] > GIB
    assert "as asked" in estimate.reason


def test_a_tiny_budget_gets_the_smallest(machine: Machine) -> None:
    placement = _estimate(LLAMA_8B, machine, gib=0.01).placement
    assert (placement.context_size, placement.kv_cells) == (256, 256)


def test_many_sequences_get_cells_to_be_of_use(machine: Machine) -> None:
    placement = _estimate(SMOLLM2, machine, context_size=2048, max_sequences=16).placement
    assert (placement.context_size, placement.kv_cells) == (2048, 8192)


def test_a_second_copy_of_rearranged_weights_counts(machine: Machine) -> None:
    with_copy = _estimate(SMOLLM2, machine).devices[0].weights
    without = _estimate(SMOLLM2, machine, options={"repack": "off"}).devices[0].weights
    assert with_copy - without == 20 * MIB


def test_attention_is_fused_only_where_the_scores_would_be_large(machine: Machine) -> None:
    def compute(**options: Any) -> int:
        return _estimate(SMOLLM2, machine, options=options).devices[0].compute

    assert compute() == compute(flash_attention="off") > compute(flash_attention="on")
    assert compute(ubatch_size=8192) == compute(ubatch_size=8192, flash_attention="on")
    assert compute(kv_type="q8_0") == compute(flash_attention="on", kv_type="q8_0")


def test_layers_may_differ_in_heads_and_windows() -> None:
    header = _header(
        "mixed",
        block_count=4,
        embedding_length=64,
        attention__head_count=4,
        attention__head_count_kv=[1, 0, 2, 1],
        attention__key_length=16,
        attention__value_length=16,
        attention__sliding_window=128,
        attention__sliding_window_pattern=[True, True, False, False],
    )
    layers = read_kv_shape(header).layers
    assert [(layer.n_elements, layer.is_sliding) for layer in layers] == [
        (32, True),
        (64, False),
        (32, False),
    ]


def test_compressed_attention_keeps_one_row() -> None:
    header = _header(
        "deepseek2",
        block_count=1,
        embedding_length=64,
        attention__head_count=4,
        attention__kv_lora_rank=512,
        attention__key_length_mla=192,
        rope__dimension_count=64,
    )
    assert [layer.n_elements for layer in read_kv_shape(header).layers] == [576]


def test_recurrent_layers_take_the_same_for_any_length() -> None:
    header = _header(
        "mamba",
        block_count=2,
        embedding_length=64,
        attention__head_count=0,
        ssm__state_size=16,
        ssm__inner_size=128,
        ssm__conv_kernel=4,
    )
    shape = read_kv_shape(header)
    sizes = {
        shape.size_bytes(cells, n_sequences=4, n_ubatch=512, kv_type="f16") for cells in (256, 8192)
    }
    assert sizes == {4 * 2 * 4 * (128 * 16 + 3 * 128)}


def test_an_encoder_has_no_kv_cache(machine: Machine) -> None:
    header = _header(
        "bert",
        block_count=6,
        context_length=512,
        embedding_length=384,
        feed_forward_length=1536,
        attention__head_count=12,
    )
    estimate = _estimate(header, machine, context_size=4096)
    assert (estimate.placement.context_size, estimate.placement.kv_cells) == (512, 0)
    assert estimate.devices[0].kv == 0


def test_an_encoder_with_a_decoder_is_refused(machine: Machine) -> None:
    with pytest.raises(UnsupportedOperation, match="t5"):
        _estimate(_header("t5"), machine)


def test_an_empty_header_does_not_break_it(machine: Machine) -> None:
    assert _estimate(_header("llama", n_vocab=0), machine).placement.context_size == 4096


@given(gib=st.floats(0.05, 64), n_sequences=st.integers(1, 300))
def test_an_automatic_placement_fits_the_budget_or_is_the_smallest(
    machine: Machine, gib: float, n_sequences: int
) -> None:
    for header in (SMOLLM2, GEMMA, LLAMA_8B):
        estimate = _estimate(header, machine, gib=gib, max_sequences=n_sequences)
        placement = estimate.placement
        assert placement.context_size <= placement.kv_cells
        assert placement.kv_cells % 256 == 0
        is_smallest = placement.context_size <= 256
        assert is_smallest or estimate.by_device()["cpu"] <= gib * GIB
