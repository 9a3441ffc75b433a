"""The options of the backend llama.cpp."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

__all__ = ["LlamaCppOptions"]


class LlamaCppOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How llama.cpp runs a model. Every field has a default that is right for most."""

    #: Threads that compute; None is one per processor this process may use, and fewer while other
    #: programs keep those busy.
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    #: Most prompt tokens evaluated in one step.
    batch_size: Annotated[int, msgspec.Meta(ge=32, le=16384)] = 512
    #: Most tokens computed at once inside a step; more is faster on a GPU and takes more memory.
    ubatch_size: Annotated[int, msgspec.Meta(ge=32, le=16384)] = 128
    #: Element type of the KV cache: q8_0 takes 53 % of the memory of f16 at a small loss.
    kv_type: Literal["f16", "q8_0"] = "f16"
    #: Fused attention. It saves memory, and on a CPU it takes twice as long per token of a long
    #: context; auto uses it only where the memory saved is large. q8_0 needs it.
    flash_attention: Literal["auto", "on", "off"] = "auto"
    #: Keep finished prompts in the KV cache, until its room is needed, for requests that begin
    #: alike.
    prefix_cache: bool = True
    #: Rearrange weights for the processor when loading: faster, but a second copy of them in
    #: memory. auto does, except on processors with AMX, where llama.cpp's kernels crash.
    repack: Literal["auto", "on", "off"] = "auto"
