"""From a model on disk to an engine. Runs in the worker: imports the native library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runner.api import ModelFileError
from runner_llamacpp.architecture import check_supported, is_encoder, pooling_of
from runner_llamacpp.contention import ThreadGovernor
from runner_llamacpp.embedding import EncoderEngine
from runner_llamacpp.engine import GenerationEngine
from runner_llamacpp.intake import Intake
from runner_llamacpp.kvcache import ALIGNMENT, KvCache, affordable_idle_cells
from runner_llamacpp.memory import flash_attention, n_outputs
from runner_llamacpp.native import NativeContext, NativeModel, lib, native_log
from runner_llamacpp.prompts import Prompts, read_template
from runner_llamacpp.threads import usable_cpus
from runner_llamacpp.vocabulary import Vocabulary

if TYPE_CHECKING:
    from runner.api import LoadReport, Model, Placement
    from runner_llamacpp.options import LlamaCppOptions

__all__ = ["open_engine"]

_KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}
_FLASH_ATTENTION = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
_POOLINGS = {
    "mean": lib.LLAMA_POOLING_TYPE_MEAN,
    "cls": lib.LLAMA_POOLING_TYPE_CLS,
    "last": lib.LLAMA_POOLING_TYPE_LAST,
    "rank": lib.LLAMA_POOLING_TYPE_RANK,
}


def open_engine(
    model: Model, options: LlamaCppOptions, placement: Placement, report: LoadReport
) -> GenerationEngine | EncoderEngine:
    """Load weights, make a context, and wire up the engine for this kind of model.

    :raises ModelFileError: llama.cpp refuses the file.
    :raises MemoryError: the context could not be allocated.
    """
    check_supported(model.header)
    paths = model.paths("weights")
    if not paths:
        raise ModelFileError(f"{model.name} has no weights file: pull it first")
    native_log()
    lib.llama_backend_init()
    native = NativeModel(
        paths,
        repack=_repacks(options, report),
        on_progress=lambda fraction: report.progress(0.9 * fraction, "reading weights"),
    )
    try:
        opener = _open_encoder if is_encoder(model.header) else _open_generator
        engine = opener(model, native, options, placement)
    except BaseException:
        native.close()
        raise
    report.progress(1.0, "ready")
    return engine


def _open_generator(
    model: Model, native: NativeModel, options: LlamaCppOptions, placement: Placement
) -> GenerationEngine:
    vocabulary = Vocabulary(native)
    batch_size = max(options.batch_size, placement.max_sequences)
    outputs = min(n_outputs(vocabulary.n_vocab, placement.max_sequences), batch_size)
    context = NativeContext(
        native,
        n_vocab=vocabulary.n_vocab,
        n_ctx=placement.kv_cells,
        n_batch=batch_size,
        n_ubatch=min(options.ubatch_size, batch_size),
        n_seq_max=placement.max_sequences,
        n_outputs_max=outputs,
        kv_unified=True,
        swa_full=False,
        pooling_type=_no_pooling(model),
        type_k=_KV_TYPES[options.kv_type],
        type_v=_KV_TYPES[options.kv_type],
        **_common(options, native, placement.kv_cells),
    )
    if context.memory is None:
        context.close()
        raise ModelFileError(
            f"{model.name}: llama.cpp has no KV cache for its architecture, "
            f'"{model.header.architecture}"'
        )
    context_size = min(placement.context_size, context.n_cells)
    is_fused = flash_attention(options, native.n_heads, placement.kv_cells) != "off"
    cache = KvCache(
        context,
        n_cells=context.n_cells,
        n_sequences=placement.max_sequences,
        n_swa=native.n_swa,
        can_cut=native.has_partial_memory,
        # Without fused attention no cut is exact, so none is worth evaluating more for.
        alignment=ALIGNMENT if is_fused else 1,
        most_idle=_most_idle(model, native, is_fused=is_fused) if options.prefix_cache else None,
    )
    template = read_template(model.paths("chat_template"), native.chat_template)
    intake = Intake(
        vocabulary,
        Prompts(vocabulary, template, n_enough=context_size),
        pooling=pooling_of(model.header),
        n_embd=native.n_embd,
        context_size=context_size,
    )
    return GenerationEngine(
        native, context, vocabulary, cache, intake, batch_size=batch_size, n_outputs=outputs
    )


def _open_encoder(
    model: Model, native: NativeModel, options: LlamaCppOptions, placement: Placement
) -> EncoderEngine:
    vocabulary = Vocabulary(native)
    pooling = pooling_of(model.header)
    # An encoder takes each text whole, in one call.
    size = placement.context_size
    context = NativeContext(
        native,
        n_vocab=vocabulary.n_vocab,
        n_ctx=size,
        n_batch=size,
        n_ubatch=size,
        n_seq_max=min(placement.max_sequences, size),
        kv_unified=True,
        embeddings=True,
        pooling_type=_POOLINGS[pooling],
        **_common(options, native, size),
    )
    return EncoderEngine(
        native,
        context,
        vocabulary,
        pooling=pooling,
        context_size=size,
        max_sequences=min(placement.max_sequences, size),
    )


def _most_idle(model: Model, native: NativeModel, *, is_fused: bool) -> int:
    return affordable_idle_cells(
        model.header.tensor_bytes, native.n_layers, native.n_heads, is_fused=is_fused
    )


def _no_pooling(model: Model) -> int:
    """Texts are pooled by us, so that they may be longer than a call.

    Where the model names no pooling, naming none either spares a warning.
    """
    names_one = f"{model.header.architecture}.pooling_type" in model.header.metadata
    return int(lib.LLAMA_POOLING_TYPE_NONE if names_one else lib.LLAMA_POOLING_TYPE_UNSPECIFIED)


def _common(options: LlamaCppOptions, native: NativeModel, cells: int) -> dict[str, Any]:
    n_threads = options.threads or usable_cpus()
    return {
        # A number that was asked for is obeyed.
        "governor": None if options.threads else ThreadGovernor(n_threads),
        "n_threads": n_threads,
        "n_threads_batch": n_threads,
        "flash_attn_type": _FLASH_ATTENTION[flash_attention(options, native.n_heads, cells)],
    }


def _repacks(options: LlamaCppOptions, report: LoadReport) -> bool:
    """Whether to let llama.cpp rearrange weights.

    Its AMX kernels crash at the first token (``ldtilecfg`` in ``ggml_backend_amx_mul_mat``, seen
    with libllama 0.5.0 on a Sapphire Rapids processor), and only leaving out all rearranging keeps
    it from using them.
    """
    if options.repack != "auto":
        return options.repack == "on"
    if b"AMX_INT8 = 1" not in lib.llama_print_system_info():
        return True
    report.log("llama.cpp's AMX kernels are left out: they crash; repack=on uses them all the same")
    return False
