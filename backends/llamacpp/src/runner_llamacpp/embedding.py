"""Vectors from texts: pooling of token vectors, and the engine of encoder models."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from runner.api import (
    EmbeddingRequest,
    EmbeddingVector,
    Engine,
    EngineStats,
    Failed,
    Finished,
    Started,
    Step,
    UnsupportedOperation,
)
from runner_llamacpp.batch import Batch
from runner_llamacpp.prompts import embedding_inputs
from runner_llamacpp.sequence import Job

if TYPE_CHECKING:
    from array import array

    from numpy.typing import NDArray

    from runner.api import EngineRequest, Event
    from runner_llamacpp.architecture import Pooling
    from runner_llamacpp.native import NativeContext, NativeModel
    from runner_llamacpp.vocabulary import Vocabulary

__all__ = ["EncoderEngine", "TokenPooling", "normalised", "refuse_ranking"]


class TokenPooling:
    """Makes one vector of the token vectors of a text, which come in chunks.

    llama.cpp pools within one chunk only, so longer texts are pooled here.
    """

    def __init__(self, kind: Pooling, n_embd: int) -> None:
        self._kind = kind
        self._sum = np.zeros(n_embd, np.float64)
        self._n = 0

    def add(self, rows: NDArray[np.float32]) -> None:
        """``rows [n_tokens, n_embd] f32``, in the order of the text."""
        if self._kind == "mean":
            self._sum += rows.sum(axis=0, dtype=np.float64)
        elif self._kind == "last":
            self._sum[:] = rows[-1]
        elif self._n == 0:
            self._sum[:] = rows[0]
        self._n += len(rows)

    def reset(self) -> None:
        """Begin again."""
        self._sum[:] = 0
        self._n = 0

    def vector(self) -> bytes:
        """``[n_embd] f32``, little-endian, of length 1. (A mean's divisor cancels out.)"""
        return normalised(self._sum)


def normalised(vector: NDArray[np.float32] | NDArray[np.float64]) -> bytes:
    """``[n_embd] f32``, little-endian, scaled to an L2 norm of 1; zeros stay zeros."""
    values = vector.astype(np.float64)
    norm = float(np.sqrt(values @ values))
    return (values / norm if norm > 0 else values).astype("<f4").tobytes()


def refuse_ranking(pooling: Pooling) -> None:
    """Refuse embeddings of a model whose only output is a relevance score.

    :raises UnsupportedOperation: it is one.
    """
    if pooling == "rank":
        raise UnsupportedOperation(
            "this model ranks documents and makes no embeddings: use an embedding model",
            param="model",
        )


class EncoderEngine(Engine):
    """Runs models in which every token sees every other (BERT and its kin): embeddings only.

    Several inputs are evaluated in one call, each whole: ``context`` must take ``context_size``
    tokens at once, and pool.
    """

    def __init__(
        self,
        model: NativeModel,
        context: NativeContext,
        vocabulary: Vocabulary,
        *,
        pooling: Pooling,
        context_size: int,
        max_sequences: int,
    ) -> None:
        self._model = model
        self._context = context
        self._vocabulary = vocabulary
        self._pooling = pooling
        self._context_size = context_size
        self._max_sequences = max_sequences
        self._batch = Batch(context_size)
        self._jobs: dict[str, Job] = {}
        #: Inputs to evaluate: job, index in its request, tokens.
        self._queue: deque[tuple[Job, int, array[int]]] = deque()
        self._n_open: dict[str, int] = {}
        self._n_prompt = 0

    def submit(self, request: EngineRequest) -> None:
        """Queue the inputs of an embedding request; refuse any other."""
        if not isinstance(request, EmbeddingRequest):
            raise UnsupportedOperation(
                "this model makes embeddings and cannot generate text: use /v1/embeddings, "
                "or another model",
                param="model",
            )
        refuse_ranking(self._pooling)
        inputs = embedding_inputs(request, self._vocabulary, context_size=self._context_size)
        job = Job(request.id, sum(map(len, inputs)))
        self._jobs[job.id] = job
        self._n_open[job.id] = len(inputs)
        self._queue.extend((job, index, tokens) for index, tokens in enumerate(inputs))

    def step(self) -> Step:
        """Evaluate as many waiting inputs as one call takes."""
        group = self._take_group()
        events: list[Event] = []
        if not group:
            return Step(events=events, has_work=False)
        for job, _, _ in group:
            if not job.is_started:
                job.mark_started()
                events.append(Started(request_id=job.id, n_prompt=job.n_prompt))
        self._batch.clear()
        for seq_id, (_, _, tokens) in enumerate(group):
            self._batch.add_prompt(tokens, 0, seq_id, output="all")
        self._context.clear()
        result = self._context.decode(self._batch)
        for seq_id, (job, index, tokens) in enumerate(group):
            if job.id not in self._jobs:
                continue
            if result != 0:
                events.append(self._fail(job, result))
                continue
            self._n_prompt += len(tokens)
            vector = normalised(self._context.pooled_embedding(seq_id))
            events.append(EmbeddingVector(request_id=job.id, index=index, vector=vector))
            self._close_input(job, events)
        return Step(events=events, has_work=bool(self._queue))

    def cancel(self, request_id: str) -> None:
        """Take what is left of a request out of the queue."""
        if self._jobs.pop(request_id, None) is not None:
            del self._n_open[request_id]
            self._queue = deque(entry for entry in self._queue if entry[0].id != request_id)

    def stats(self) -> EngineStats:
        """There is no KV cache; nothing is active between steps."""
        return EngineStats(queued=len(self._queue), n_prompt=self._n_prompt)

    def close(self) -> None:
        """Free what llama.cpp holds."""
        self._context.close()
        self._model.close()

    def _take_group(self) -> list[tuple[Job, int, array[int]]]:
        group: list[tuple[Job, int, array[int]]] = []
        n_tokens = 0
        while self._queue and len(group) < self._max_sequences:
            n_tokens += len(self._queue[0][2])
            if n_tokens > self._batch.size:
                break
            group.append(self._queue.popleft())
        return group

    def _close_input(self, job: Job, events: list[Event]) -> None:
        job.mark_output()
        self._n_open[job.id] -= 1
        if self._n_open[job.id] == 0:
            self.cancel(job.id)
            events.append(Finished(request_id=job.id, usage=job.usage(), timings=job.timings()))

    def _fail(self, job: Job, result: int) -> Failed:
        self.cancel(job.id)
        return Failed(
            request_id=job.id,
            code="internal_error",
            message=f"llama.cpp failed to evaluate the input (error {result})",
        )
