"""The size of a model's KV cache, as llama.cpp allocates it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from runner.api import ModelHeader

__all__ = ["KvShape", "Layer", "padded", "read_kv_shape"]

#: Bytes per element; q8_0 has blocks of 32 bytes with a 2-byte scale each.
_ELEMENT_BYTES = {"f16": (2, 1), "q8_0": (34, 32)}

#: Every n-th layer attends to everything, the others to a window; for headers that do not say.
_PATTERNS = {"cohere2": 4, "exaone4": 4, "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gpt-oss": 2}


class Layer(msgspec.Struct, frozen=True):
    """One attention layer: elements of its keys and values per token."""

    n_elements: int
    is_sliding: bool


class KvShape(msgspec.Struct, frozen=True, kw_only=True):
    """What determines a cache's size, apart from how many tokens it holds."""

    layers: tuple[Layer, ...]
    #: Tokens of the sliding window; 0 for none.
    n_window: int
    #: Bytes that recurrent layers keep per sequence, whatever its length.
    recurrent_bytes: int

    def sliding_cells(self, cells: int, *, n_sequences: int, n_ubatch: int) -> int:
        """Cells of the layers with a window: each sequence's window, and a call's tokens."""
        if not any(layer.is_sliding for layer in self.layers):
            return 0
        return min(padded(cells), padded(self.n_window * n_sequences + n_ubatch))

    def size_bytes(
        self, cells: int, *, n_sequences: int, n_ubatch: int, kv_type: Literal["f16", "q8_0"]
    ) -> int:
        """Bytes of a unified cache of ``cells`` tokens."""
        sliding = self.sliding_cells(cells, n_sequences=n_sequences, n_ubatch=n_ubatch)
        elements = sum(
            layer.n_elements * (sliding if layer.is_sliding else padded(cells))
            for layer in self.layers
        )
        multiplier, divisor = _ELEMENT_BYTES[kv_type]
        return elements * multiplier // divisor + self.recurrent_bytes * n_sequences


def padded(cells: int) -> int:
    """llama.cpp rounds caches up to 256 cells."""
    return -(-cells // 256) * 256


def read_kv_shape(header: ModelHeader) -> KvShape:
    """Grouped-query heads, key and value lengths, windows and recurrent layers of a header."""
    n_layers = header.integer("block_count")
    n_heads = _per_layer(header, "attention.head_count", n_layers, default=0)
    n_kv_heads = _per_layer(header, "attention.head_count_kv", n_layers, default=None)
    embedding_length = header.integer("embedding_length")
    n_window = header.integer("attention.sliding_window")
    sliding = _sliding_layers(header, n_layers) if n_window else [False] * n_layers
    layers = []
    for index in range(n_layers):
        heads = n_heads[index] or 0
        kv_heads = n_kv_heads[index]
        head_length = embedding_length // heads if heads else 0
        n_elements = _elements(
            header,
            heads if kv_heads is None else kv_heads,
            head_length,
            is_sliding=sliding[index],
        )
        if n_elements:
            layers.append(Layer(n_elements, sliding[index]))
    n_recurrent = n_layers - len(layers) if header.integer("ssm.state_size") else 0
    return KvShape(
        layers=tuple(layers),
        n_window=n_window,
        recurrent_bytes=n_recurrent * _recurrent_bytes(header),
    )


def _elements(header: ModelHeader, n_kv_heads: int, head_length: int, *, is_sliding: bool) -> int:
    """Elements of keys and values per token. Latent attention keeps one compressed row instead."""
    latent = header.integer("attention.kv_lora_rank")
    if latent and header.integer("attention.key_length_mla"):
        return latent + header.integer("rope.dimension_count")
    suffix = "_swa" if is_sliding else ""
    key_length = header.integer("attention.key_length", head_length)
    value_length = header.integer("attention.value_length", head_length)
    key_length = header.integer(f"attention.key_length{suffix}", key_length)
    value_length = header.integer(f"attention.value_length{suffix}", value_length)
    return n_kv_heads * (key_length + value_length)


def _sliding_layers(header: ModelHeader, n_layers: int) -> list[bool]:
    """Which layers have the window only. Where nothing is known, none: the larger answer."""
    pattern = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= n_layers:
        return [bool(value) for value in pattern[:n_layers]]
    every = pattern if isinstance(pattern, int) else _PATTERNS.get(header.architecture, 1)
    return [every > 0 and index % every < every - 1 for index in range(n_layers)]


def _recurrent_bytes(header: ModelHeader) -> int:
    """f32 state and convolution of one recurrent layer and sequence."""
    n_inner = header.integer("ssm.inner_size")
    state = header.integer("ssm.state_size")
    groups = 2 * header.integer("ssm.group_count") * state
    return 4 * (
        n_inner * state + max(header.integer("ssm.conv_kernel") - 1, 0) * (n_inner + groups)
    )


def _per_layer(
    header: ModelHeader, key: str, n_layers: int, *, default: int | None
) -> list[int | None]:
    """A number per layer; headers give one for all, or a list."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, list):
        numbers = [int(v) if isinstance(v, int | float) else None for v in value]
        return (numbers + [default] * n_layers)[:n_layers]
    if isinstance(value, int | float):
        return [int(value)] * n_layers
    return [default] * n_layers
