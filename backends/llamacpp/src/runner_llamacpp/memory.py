"""What a model will take, from its header alone, and the context that is chosen for it.

The formulas are llama.cpp's own (its KV cache, context and graph code), checked against the buffer
sizes it logs for SmolLM2 135M and Gemma 3 270M: KV to the byte, compute within a mebibyte. What the
process takes besides is fitted on the same two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from runner.api import DeviceMemory, MemoryEstimate, Placement
from runner_llamacpp.architecture import check_supported, is_encoder, vocabulary_size
from runner_llamacpp.kvsize import KvShape, padded, read_kv_shape
from runner_llamacpp.options import LlamaCppOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.api import Budget, LoadConfig, Machine, ModelHeader

__all__ = ["estimate_memory", "flash_attention", "n_outputs"]

DEFAULT_SEQUENCES = 16
#: What llama.cpp can tell apart in one context.
MOST_SEQUENCES = 256
#: Cells per sequence that make so many sequences worth having.
CELLS_PER_SEQUENCE = 512
#: A context left to us takes at most this part of the budget for its KV cache, so that other models
#: have room, unless even this many tokens need more.
_KV_SHARE = 0.25
_SMALL_CONTEXT = 8192
_SMALLEST_CONTEXT = 256
#: For headers that name no trained length.
_UNKNOWN_CONTEXT = 4096

#: Attention scores of one call, above which fused attention, which keeps none, is worth its time.
#: On a CPU llama.cpp computes it token by token for chunks below 64 tokens: with 2,816 tokens of
#: SmolLM2 in the cache, decoding one took 47 ms fused and 21 ms not, a chunk of 16 568 and 112 ms.
_MOST_SCORE_BYTES = 256 * 2**20

#: Outputs of one call: memory for this many bytes of logits, between these bounds.
_OUTPUT_BYTES = 32 * 2**20
_MOST_OUTPUTS = 128

#: Python, numpy and the libraries; the tokenizer, with its share per token.
_PROCESS_BYTES = 54 * 2**20
_TOKEN_BYTES = 123
#: Element types whose matrices llama.cpp rearranges in a second copy, on x86 with AVX2 and on ARM.
_REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "Q2_K"})


class _Size(NamedTuple):
    context_size: int
    kv_cells: int


class _Terms(msgspec.Struct, frozen=True, kw_only=True):
    """A model and a configuration, with what does not depend on the context."""

    kv: KvShape
    n_sequences: int
    n_ubatch: int
    n_vocab: int
    options: LlamaCppOptions
    #: f32 values per token that live in the graph at its widest point.
    width: int
    n_heads: int
    weights: int
    process: int

    def kv_bytes(self, cells: int) -> int:
        """The KV cache, which is resident from the load on."""
        return self.kv.size_bytes(
            cells,
            n_sequences=self.n_sequences,
            n_ubatch=self.n_ubatch,
            kv_type=self.options.kv_type,
        )

    def compute_bytes(self, cells: int) -> int:
        """The graph's buffer, at its widest point or at the logits, and the outputs."""
        masks = cells + self.kv.sliding_cells(
            cells, n_sequences=self.n_sequences, n_ubatch=self.n_ubatch
        )
        graph = self.n_ubatch * (2 * masks + 4 * self.width)
        if flash_attention(self.options, self.n_heads, cells) == "off":
            graph += _score_bytes(self.options, self.n_heads, cells)
        rows = n_outputs(self.n_vocab, self.n_sequences)
        return max(graph, 4 * rows * self.n_vocab) + 4 * rows * self.n_vocab

    def total(self, cells: int) -> int:
        """All of it."""
        return self.weights + self.process + self.kv_bytes(cells) + self.compute_bytes(cells)


def estimate_memory(
    header: ModelHeader, config: LoadConfig, machine: Machine, budget: Budget
) -> MemoryEstimate:
    """Bytes on the CPU, and the placement chosen within the budget.

    :raises UnsupportedOperation: the backend cannot run this architecture.
    """
    check_supported(header)
    options = config.options
    if not isinstance(options, LlamaCppOptions):
        options = LlamaCppOptions()
    available = budget.devices.get("cpu", 0)
    n_sequences = min(config.max_sequences or DEFAULT_SEQUENCES, MOST_SEQUENCES)
    terms = _terms(header, options, machine, n_sequences)
    trained = header.context_length or _UNKNOWN_CONTEXT
    if is_encoder(header):
        return _encoder_estimate(terms, min(config.context_size or trained, trained))
    if config.context_size is not None:
        context_size, why = config.context_size, "as asked"
    else:
        context_size, why = _choose_context(terms, trained, available)
    cells = _choose_cells(terms, context_size, available)
    size = _Size(min(context_size, cells), cells)
    reason = (
        f"a context of {size.context_size} tokens ({why}) in a KV cache of {cells}, which up to "
        f"{n_sequences} sequences share; on the CPU"
    )
    return _estimate(terms, size, reason)


def flash_attention(
    options: LlamaCppOptions, n_heads: int, cells: int
) -> Literal["auto", "on", "off"]:
    """What to tell llama.cpp: the option, or off where auto can afford the scores."""
    if options.flash_attention != "auto" or options.kv_type != "f16":
        return options.flash_attention
    return "off" if _score_bytes(options, n_heads, cells) <= _MOST_SCORE_BYTES else "auto"


def _score_bytes(options: LlamaCppOptions, n_heads: int, cells: int) -> int:
    """f32 ``[n_heads, ubatch_size, cells]``."""
    return 4 * n_heads * options.ubatch_size * padded(cells)


def n_outputs(n_vocab: int, n_sequences: int) -> int:
    """Tokens of one call that may have logits or an embedding.

    One per sequence is needed; more make the embedding of long texts faster. The logits of each
    take ``4 * n_vocab`` bytes.
    """
    rows = _OUTPUT_BYTES // (4 * max(n_vocab, 1))
    return max(n_sequences, min(rows, _MOST_OUTPUTS))


def _terms(
    header: ModelHeader, options: LlamaCppOptions, machine: Machine, n_sequences: int
) -> _Terms:
    n_vocab = vocabulary_size(header)
    n_ff = _largest(header, "feed_forward_length") or _largest(header, "expert_feed_forward_length")
    return _Terms(
        kv=read_kv_shape(header),
        n_sequences=n_sequences,
        n_ubatch=min(options.ubatch_size, max(options.batch_size, n_sequences)),
        n_vocab=n_vocab,
        options=options,
        width=4 * header.integer("embedding_length") + 3 * n_ff,
        n_heads=_largest(header, "attention.head_count"),
        weights=header.tensor_bytes + _repacked_bytes(header, options, machine),
        process=_PROCESS_BYTES + _TOKEN_BYTES * n_vocab,
    )


def _choose_context(terms: _Terms, trained: int, available: int) -> tuple[int, str]:
    """The trained length, or the most that leaves room for others, or at least fits."""
    kv_limit = int(_KV_SHARE * available)
    if terms.kv_bytes(trained) <= kv_limit and terms.total(trained) <= available:
        return trained, "what it was trained for"
    fits = _most_cells(trained, lambda n: terms.total(n) <= available)
    modest = _most_cells(trained, lambda n: terms.kv_bytes(n) <= kv_limit)
    small = min(trained, _SMALL_CONTEXT)
    context_size = max(min(fits, max(modest, small)), min(trained, _SMALLEST_CONTEXT))
    return context_size, f"the memory budget sets it; the model was trained for {trained}"


def _choose_cells(terms: _Terms, context_size: int, available: int) -> int:
    """Cells for one whole context, and for the sequences to be of use where there is room."""
    useful = max(context_size, CELLS_PER_SEQUENCE * terms.n_sequences)
    fits = _most_cells(
        useful,
        lambda n: terms.kv_bytes(n) <= _KV_SHARE * available and terms.total(n) <= available,
    )
    return padded(max(context_size, fits))


def _most_cells(most: int, is_fine: Callable[[int], bool]) -> int:
    """The largest multiple of 256 up to ``most`` (or ``most`` itself) that is fine; 0 if none."""
    if is_fine(most):
        return most
    low, high = 0, most // 256
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_fine(256 * middle) else (low, middle - 1)
    return 256 * low


def _encoder_estimate(terms: _Terms, context_size: int) -> MemoryEstimate:
    """An encoder keeps nothing between calls; it must take a whole text in one."""
    scores = 4 * terms.n_heads * context_size * context_size
    compute = context_size * 4 * terms.width + scores
    return MemoryEstimate(
        devices=(
            DeviceMemory(
                device="cpu", weights=terms.weights, compute=compute, process=terms.process
            ),
        ),
        placement=Placement(context_size=context_size, kv_cells=0, max_sequences=terms.n_sequences),
        reason=f"an encoder of texts of up to {context_size} tokens; on the CPU",
    )


def _estimate(terms: _Terms, size: _Size, reason: str) -> MemoryEstimate:
    memory = DeviceMemory(
        device="cpu",
        weights=terms.weights,
        kv=terms.kv_bytes(size.kv_cells),
        compute=terms.compute_bytes(size.kv_cells),
        process=terms.process,
    )
    placement = Placement(
        context_size=size.context_size,
        kv_cells=size.kv_cells,
        max_sequences=terms.n_sequences,
    )
    return MemoryEstimate(devices=(memory,), placement=placement, reason=reason)


def _repacked_bytes(header: ModelHeader, options: LlamaCppOptions, machine: Machine) -> int:
    """The second copy of rearranged weights (token embeddings are looked up, not multiplied)."""
    features = machine.cpu.features
    has_amx = any(feature.startswith("amx") for feature in features)
    if options.repack == "off" or (options.repack == "auto" and has_amx):
        return 0
    return sum(
        tensor.size_bytes
        for tensor in header.tensors
        if tensor.dtype in _REPACKED
        and len(tensor.shape) > 1
        and not tensor.name.startswith("token_embd")
    )


def _largest(header: ModelHeader, key: str) -> int:
    """A header's number, or the largest where it has one per layer."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, list):
        return max((int(v) for v in value if isinstance(v, int | float)), default=0)
    return header.integer(key)
