"""Requests checked and turned into jobs, before anything is evaluated."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from runner.api import (
    ChatRequest,
    CompletionRequest,
    ContextLengthExceeded,
    RequestError,
)
from runner_llamacpp.choice import Choice
from runner_llamacpp.embedding import TokenPooling, refuse_ranking
from runner_llamacpp.prompts import embedding_inputs
from runner_llamacpp.sampler import Sampler, check_sampling
from runner_llamacpp.sequence import Job, Sequence

if TYPE_CHECKING:
    from array import array

    from runner.api import EmbeddingRequest, EngineRequest, Generation
    from runner_llamacpp.architecture import Pooling
    from runner_llamacpp.prompts import Prompts
    from runner_llamacpp.vocabulary import Vocabulary

__all__ = ["Intake"]


class Intake:
    """What a generating model accepts."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompts: Prompts,
        *,
        pooling: Pooling,
        n_embd: int,
        context_size: int,
    ) -> None:
        self._vocabulary = vocabulary
        self._prompts = prompts
        self._pooling = pooling
        self._n_embd = n_embd
        self._context_size = context_size
        self._ages = itertools.count()

    def job(self, request: EngineRequest) -> Job:
        """The sequences that answer a request.

        :raises RequestError: this model cannot answer it.
        """
        if isinstance(request, ChatRequest):
            prompts = [self._prompts.chat(request)]
            return self._generation(request.id, prompts, request.generation, param="messages")
        if isinstance(request, CompletionRequest):
            prompts = self._prompts.completion(request)
            return self._generation(request.id, prompts, request.generation, param="prompt")
        return self._embedding(request)

    def _generation(
        self, request_id: str, prompts: list[array[int]], generation: Generation, *, param: str
    ) -> Job:
        if not prompts:
            raise RequestError(f"{param} is empty: give at least one", param=param)
        check_sampling(generation.sampling, self._vocabulary)
        for tokens in prompts:
            if len(tokens) >= self._context_size:
                raise ContextLengthExceeded(
                    n_prompt=len(tokens), context_size=self._context_size, param=param
                )
        job = Job(request_id, sum(map(len, prompts)))
        try:
            for number, tokens in enumerate(prompts):
                self._add_choices(job, tokens, generation, first_index=number * generation.n)
        except BaseException:
            for sequence in job.sequences:
                sequence.close()
            raise
        return job

    def _add_choices(
        self, job: Job, tokens: array[int], generation: Generation, *, first_index: int
    ) -> None:
        leader: Sequence | None = None
        for k in range(generation.n):
            n_room = self._context_size - len(tokens)
            choice = Choice(job.id, first_index + k, generation, self._vocabulary, n_room)
            sampler = Sampler(
                generation.sampling,
                self._vocabulary,
                index=k,
                prompt=tokens,
                ban_end=generation.ignore_eos,
            )
            sequence = Sequence(
                job, next(self._ages), tokens[:], choice=choice, sampler=sampler, leader=leader
            )
            leader = leader or sequence
            job.sequences.append(sequence)

    def _embedding(self, request: EmbeddingRequest) -> Job:
        refuse_ranking(self._pooling)
        inputs = embedding_inputs(request, self._vocabulary, context_size=self._context_size)
        job = Job(request.id, sum(map(len, inputs)))
        for index, tokens in enumerate(inputs):
            pooling = TokenPooling(self._pooling, self._n_embd)
            job.sequences.append(
                Sequence(job, next(self._ages), tokens, pooling=pooling, index=index)
            )
        return job
