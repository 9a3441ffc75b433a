"""llama.cpp's C API, made safe to use from here: checked structs, errors as exceptions, its log.

Importing this module loads the native library, so only code that runs in a worker (or in the
probe's child) may import it. ``lib`` is llama-cpp-python's *low-level* binding; its ``Llama`` class
is not used. ``lib`` is ``Any`` because the binding's annotations do not say what it accepts.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
from llama_cpp import llama_cpp as _binding

from runner.api import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from runner_llamacpp.batch import Batch
    from runner_llamacpp.contention import ThreadGovernor

__all__ = ["NativeContext", "NativeModel", "lib", "native_log", "set_fields"]

lib: Any = _binding

#: ``enum ggml_log_level``: debug 1, info 2, warn 3, error 4, continuation of the last 5.
_WARN, _CONTINUATION = 3, 5


def set_fields(struct: Any, **values: Any) -> None:
    """Set fields of a ctypes struct; an unknown name raises.

    ctypes takes any attribute, so a field that llama.cpp renamed would be ignored in silence.
    """
    known = {field[0] for field in struct._fields_}
    if unknown := sorted(values.keys() - known):
        raise AttributeError(f"{type(struct).__name__} has no field {', '.join(unknown)}")
    for name, value in values.items():
        setattr(struct, name, value)


class NativeLog:
    """Receives llama.cpp's log: warnings and errors go to stderr, the last few are remembered."""

    def __init__(self) -> None:
        self.recent: deque[str] = deque(maxlen=8)
        self._line = ""
        self._level = 0
        #: Must live as long as llama.cpp may log, which is as long as the process.
        self.callback = lib.llama_log_callback(self._receive)

    def _receive(self, level: int, text: bytes | None, _user_data: Any) -> None:
        if level != _CONTINUATION:
            self._level, self._line = level, ""
        self._line += (text or b"").decode("utf-8", "replace")
        if self._level >= _WARN and self._line.endswith("\n"):
            line, self._line = self._line.rstrip(), ""
            self.recent.append(line)
            sys.stderr.write(f"llama.cpp: {line}\n")


@functools.cache
def native_log() -> NativeLog:
    """The process's log receiver (llama.cpp has one), installed at the first call."""
    log = NativeLog()
    lib.llama_log_set(log.callback, None)
    return log


class NativeModel:
    """A loaded model: weights and vocabulary. The caller closes it, after its contexts.

    :param paths: the weights, in the order of their shards.
    :param on_progress: called with 0.0 to 1.0 while loading.
    :raises ModelFileError: llama.cpp refuses the file; the message carries its words.
    """

    def __init__(
        self, paths: Sequence[str], *, repack: bool, on_progress: Callable[[float], None]
    ) -> None:
        log = native_log()
        log.recent.clear()
        params = lib.llama_model_default_params()

        def progress(fraction: float, _user_data: Any) -> bool:
            on_progress(fraction)
            return True

        callback = lib.llama_progress_callback(progress)
        set_fields(
            params,
            n_gpu_layers=0,
            load_mode=lib.LLAMA_LOAD_MODE_MMAP,
            use_extra_bufts=repack,
            progress_callback=callback,
        )
        names = [path.encode() for path in paths]
        if len(names) == 1:
            self.pointer = lib.llama_model_load_from_file(names[0], params)
        else:
            array = (ctypes.c_char_p * len(names))(*names)
            self.pointer = lib.llama_model_load_from_splits(array, len(names), params)
        if not self.pointer:
            words = "; ".join(log.recent) or "it gave no reason"
            raise ModelFileError(f"llama.cpp cannot load {paths[0]}: {words}")

    @property
    def chat_template(self) -> str | None:
        """The jinja source inside the file."""
        source = lib.llama_model_chat_template(self.pointer, None)
        return source.decode("utf-8", "replace") if source else None

    @property
    def n_embd(self) -> int:
        """Elements of an embedding."""
        return int(lib.llama_model_n_embd_out(self.pointer))

    @property
    def n_layers(self) -> int:
        """Layers."""
        return int(lib.llama_model_n_layer(self.pointer))

    @property
    def n_heads(self) -> int:
        """Attention heads of the first layer."""
        return int(lib.llama_model_n_head(self.pointer))

    @property
    def n_swa(self) -> int:
        """Tokens of the sliding attention window; 0 when all layers see everything."""
        return int(lib.llama_model_n_swa(self.pointer))

    @property
    def has_partial_memory(self) -> bool:
        """Whether a sequence's memory can be cut: a recurrent state cannot."""
        return not (
            lib.llama_model_is_recurrent(self.pointer) or lib.llama_model_is_hybrid(self.pointer)
        )

    def close(self) -> None:
        """Free it."""
        if self.pointer:
            lib.llama_model_free(self.pointer)
            self.pointer = None


class NativeContext:
    """A model's working memory: KV cache, compute buffers, outputs. The caller closes it.

    :param governor: decides how many of ``n_threads`` compute; None is always all.
    :param params: fields of ``llama_context_params``.
    :raises MemoryError: llama.cpp could not make it; the message carries its words.
    """

    def __init__(
        self,
        model: NativeModel,
        *,
        n_vocab: int,
        governor: ThreadGovernor | None = None,
        **params: Any,
    ) -> None:
        log = native_log()
        log.recent.clear()
        native_params = lib.llama_context_default_params()
        set_fields(native_params, no_perf=True, **params)
        self.pointer = lib.llama_init_from_model(model.pointer, native_params)
        if not self.pointer:
            words = "; ".join(log.recent) or "it gave no reason"
            raise MemoryError(f"llama.cpp cannot make a context: {words}")
        self.memory = lib.llama_get_memory(self.pointer)
        self._n_vocab = n_vocab
        self._n_embd = model.n_embd
        self._governor = governor

    @property
    def n_cells(self) -> int:
        """Tokens the KV cache holds in all."""
        return int(lib.llama_n_ctx(self.pointer))

    def decode(self, batch: Batch) -> int:
        """Evaluate a batch: 0, 1 (no room in the KV cache; nothing changed), or an error."""
        result = int(lib.llama_decode(self.pointer, batch.native))
        if self._governor is not None and self._governor.look(time.monotonic()):
            n_threads = self._governor.n_threads
            lib.llama_set_n_threads(self.pointer, n_threads, n_threads)
        return result

    def logits(self, row: int) -> NDArray[np.float32]:
        """``[n_vocab] f32`` of the batch's token ``row``; borrowed, valid until the next decode."""
        pointer = lib.llama_get_logits_ith(self.pointer, row)
        return _borrow(pointer, self._n_vocab)

    def embeddings(self, n_rows: int) -> NDArray[np.float32]:
        """``[n_rows, n_embd] f32``, one per output token; valid until the next decode."""
        pointer = lib.llama_get_embeddings(self.pointer)
        return _borrow(pointer, n_rows * self._n_embd).reshape(n_rows, self._n_embd)

    def pooled_embedding(self, seq_id: int) -> NDArray[np.float32]:
        """``[n_embd] f32``: the vector of a whole sequence; valid until the next decode."""
        return _borrow(lib.llama_get_embeddings_seq(self.pointer, seq_id), self._n_embd)

    def set_embeddings(self, *, enabled: bool) -> None:
        """Make every token of the next decodes an output with an embedding, or not."""
        lib.llama_set_embeddings(self.pointer, enabled)

    def remove(self, seq_id: int, start: int = -1) -> bool:
        """Forget a sequence from position ``start`` on; -1 is all of it, which cannot fail."""
        return bool(lib.llama_memory_seq_rm(self.memory, seq_id, start, -1))

    def copy(self, source: int, target: int, end: int) -> None:
        """Let ``target`` share the first ``end`` cells of ``source``; -1 is all of them."""
        lib.llama_memory_seq_cp(self.memory, source, target, -1, end)

    def first_position(self, seq_id: int) -> int:
        """The lowest position of a sequence that every layer still remembers."""
        return int(lib.llama_memory_seq_pos_min(self.memory, seq_id))

    def clear(self) -> None:
        """Forget all sequences."""
        if self.memory:
            lib.llama_memory_clear(self.memory, False)

    def close(self) -> None:
        """Free it."""
        if self.pointer:
            lib.llama_free(self.pointer)
            self.pointer = None


def _borrow(pointer: Any, n: int) -> NDArray[np.float32]:
    """A view of ``n`` floats at a C pointer, without a copy."""
    if not pointer:
        raise RuntimeError("llama.cpp gave no output where one was asked for")
    array: Any = (ctypes.c_float * n).from_address(ctypes.addressof(pointer.contents))
    values: NDArray[np.float32] = np.frombuffer(array, dtype=np.float32)
    return values
