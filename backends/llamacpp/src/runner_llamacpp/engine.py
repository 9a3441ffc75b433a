"""The engine of generating models: continuous batching over one unified KV cache.

A step first gives every decoding sequence its next token, in one call of llama.cpp, and then
evaluates a chunk of one prompt in another, or of several while they are short. Calls of their own,
because a prompt that shares a call gets other rounding errors: apart, an answer depends less on who
else is being served.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from runner.api import (
    ChoiceFinished,
    EmbeddingVector,
    Engine,
    EngineStats,
    Failed,
    Finished,
    RequestError,
    Started,
    Step,
)
from runner_llamacpp.batch import Batch
from runner_llamacpp.logprobs import token_logprob
from runner_llamacpp.pace import BUSY_STEP_S, Pace
from runner_llamacpp.schedule import Schedule

if TYPE_CHECKING:
    from runner.api import EngineRequest, Event
    from runner_llamacpp.embedding import TokenPooling
    from runner_llamacpp.intake import Intake
    from runner_llamacpp.kvcache import KvCache
    from runner_llamacpp.native import NativeContext, NativeModel
    from runner_llamacpp.sequence import Job, Sequence
    from runner_llamacpp.vocabulary import Vocabulary

__all__ = ["GenerationEngine"]

#: llama_decode's word for: no room in the KV cache, nothing was changed.
_NO_ROOM = 1


class GenerationEngine(Engine):
    """Chat, completion and embeddings of a causal model.

    :param n_outputs: the most tokens of one call that may have an output.
    """

    def __init__(
        self,
        model: NativeModel,
        context: NativeContext,
        vocabulary: Vocabulary,
        cache: KvCache,
        intake: Intake,
        *,
        batch_size: int,
        n_outputs: int,
    ) -> None:
        self._model = model
        self._context = context
        self._vocabulary = vocabulary
        self._cache = cache
        self._intake = intake
        self._n_outputs = n_outputs
        self._schedule = Schedule(cache)
        self._batch = Batch(batch_size)
        self._pace = Pace(batch_size)
        self._jobs: dict[str, Job] = {}
        self._events: list[Event] = []
        self._n_prompt = 0
        self._n_completion = 0
        self._n_cached = 0

    def submit(self, request: EngineRequest) -> None:
        """Check a request and queue its sequences."""
        if request.id in self._jobs:
            raise RequestError(f'a request with the id "{request.id}" is running already')
        job = self._intake.job(request)
        self._jobs[job.id] = job
        self._n_prompt += job.n_prompt
        for sequence in job.sequences:
            self._schedule.add(sequence)

    def step(self) -> Step:
        """Admit who fits; one token for each that decodes; a chunk of one prompt."""
        self._schedule.admit()
        n_decoded = self._decode()
        self._evaluate_prompts(n_decoded=n_decoded)
        events, self._events = self._events, []
        return Step(events=events, has_work=bool(self._schedule.running or self._schedule.waiting))

    def cancel(self, request_id: str) -> None:
        """Free a request's cells and samplers."""
        job = self._jobs.pop(request_id, None)
        if job is not None:
            for sequence in job.sequences:
                self._schedule.remove(sequence)
                sequence.close()
            job.sequences.clear()

    def stats(self) -> EngineStats:
        """``kv_used`` leaves out finished sequences: their cells are had for the asking."""
        return EngineStats(
            active=len(self._schedule.running),
            queued=len(self._schedule.waiting),
            kv_cells=self._cache.n_cells,
            kv_used=self._cache.n_used,
            n_prompt=self._n_prompt,
            n_completion=self._n_completion,
            n_cached=self._n_cached,
        )

    def close(self) -> None:
        """End all requests and free what llama.cpp holds."""
        for request_id in tuple(self._jobs):
            self.cancel(request_id)
        self._context.close()
        self._model.close()

    def _decode(self) -> int:
        """One token for every decoding sequence; returns how many there were."""
        sequences = self._schedule.decoding()
        if not sequences:
            return 0
        for sequence in sequences:
            self._begin(sequence)
        self._batch.set_decode(
            [s.tokens[-1] for s in sequences],
            [len(s.tokens) - 1 for s in sequences],
            [s.kept.seq_id for s in sequences],
        )
        started = time.perf_counter()
        if self._run(sequences):
            for row, sequence in enumerate(sequences):
                self._cache.append(sequence.kept, sequence.tokens[-1:], 1)
                self._sample(sequence, row)
            self._pace.saw_decode(time.perf_counter() - started)
        return len(sequences)

    def _evaluate_prompts(self, *, n_decoded: int) -> None:
        """A chunk of one prompt; of more, each in a call of its own, while they are short."""
        started = before = time.perf_counter()
        while self._evaluate_prompt(n_decoded=n_decoded):
            now = time.perf_counter()
            # Would another one like the last be in time?
            if (now - started) + (now - before) > BUSY_STEP_S:
                return
            before = now

    def _evaluate_prompt(self, *, n_decoded: int) -> bool:
        """A chunk of one prompt; False when there was none, or no room for it."""
        sequence = self._schedule.next_prompt()
        if sequence is None:
            return False
        self._begin(sequence)
        start, n_left = len(sequence.kept), sequence.n_left
        n = self._pace.chunk(start, n_left, is_busy=n_decoded > 0)
        if sequence.pooling is not None:
            n = min(n, self._n_outputs)
        n = min(n, self._cache.n_available)
        if not self._cache.make_free(n) or n == 0:
            if n_decoded == 0 and not self._schedule.pause_youngest():
                self._fail(sequence.job, "its KV cache is full")
            return False
        tokens = sequence.tokens[start : start + n]
        is_whole = n == n_left
        output = "all" if sequence.pooling is not None else "last" if is_whole else "none"
        self._batch.set_prompt(tokens, start, sequence.kept.seq_id, output=output)
        started = time.perf_counter()
        if self._run([sequence], with_embeddings=sequence.pooling is not None):
            self._cache.append(sequence.kept, tokens, n)
            self._pace.saw_prompt(n, time.perf_counter() - started)
            if sequence.pooling is not None:
                self._pool(sequence, sequence.pooling, n, is_whole=is_whole)
            elif is_whole:
                self._sample(sequence, n - 1)
            return True
        return False

    def _begin(self, sequence: Sequence) -> None:
        """Before the first tokens of a sequence that has become resident are evaluated."""
        if sequence.is_begun:
            return
        job = sequence.job
        if sequence.pooling is None:
            n_cached = self._cache.improve(sequence.kept, sequence.tokens)
            # A prompt counts once: not again for its other choices, nor after a pause.
            if sequence.leader is None and not sequence.was_begun:
                job.n_cached += n_cached
                self._n_cached += n_cached
        sequence.is_begun = sequence.was_begun = True
        if not job.is_started:
            job.mark_started()
            self._events.append(
                Started(request_id=job.id, n_prompt=job.n_prompt, n_cached=job.n_cached)
            )

    def _run(self, sequences: list[Sequence], *, with_embeddings: bool = False) -> bool:
        """Evaluate the batch; on failure make room for another try, or fail who is in it."""
        if with_embeddings:
            self._context.set_embeddings(enabled=True)
        result = self._context.decode(self._batch)
        if with_embeddings:
            self._context.set_embeddings(enabled=False)
        if result == 0:
            return True
        can_retry = result == _NO_ROOM and (
            self._cache.evict_one() or self._schedule.pause_youngest()
        )
        if not can_retry:
            for job in {sequence.job for sequence in sequences}:
                self._fail(job, f"llama.cpp failed to evaluate its tokens (error {result})")
        return False

    def _sample(self, sequence: Sequence, row: int) -> None:
        """The next token from the batch's token ``row``.

        When that ends the prompt, the other choices of the prompt share its cells from here on, and
        draw their first tokens from the same logits.
        """
        if len(sequence.tokens) == sequence.n_prompt:
            followers = [
                s
                for s in self._schedule.running
                if s.leader is sequence and not s.was_begun and len(s.kept) == 0
            ]
            for follower in followers:
                follower.is_begun = follower.was_begun = True
                self._cache.fork(sequence.kept, follower.kept)
                self._sample_one(follower, row)
        self._sample_one(sequence, row)

    def _sample_one(self, sequence: Sequence, row: int) -> None:
        choice, sampler, job = sequence.choice, sequence.sampler, sequence.job
        assert choice is not None
        assert sampler is not None
        job.mark_output()
        if choice.n_limit <= 0:
            choice.finish_empty()
        else:
            n_before = choice.n_generated
            token = sampler.sample(self._context, row)
            logprob = None
            if choice.n_logprobs is not None:
                logits = self._context.logits(row)
                logprob = token_logprob(logits, token, choice.n_logprobs, self._vocabulary)
            choice.take(token, logprob)
            sequence.tokens.append(token)
            job.n_completion += choice.n_generated - n_before
            self._n_completion += choice.n_generated - n_before
        if (delta := choice.drain()) is not None:
            self._events.append(delta)
        if choice.reason is not None:
            self._events.append(
                ChoiceFinished(request_id=job.id, index=choice.index, reason=choice.reason)
            )
            self._close_sequence(sequence, keep=True)

    def _pool(self, sequence: Sequence, pooling: TokenPooling, n: int, *, is_whole: bool) -> None:
        """Add the embeddings of the batch's ``n`` tokens; give out the vector at the end."""
        pooling.add(self._context.embeddings(n))
        if is_whole:
            sequence.job.mark_output()
            self._events.append(
                EmbeddingVector(
                    request_id=sequence.job.id, index=sequence.index, vector=pooling.vector()
                )
            )
            self._close_sequence(sequence, keep=False)

    def _close_sequence(self, sequence: Sequence, *, keep: bool) -> None:
        job = sequence.job
        self._schedule.remove(sequence, keep=keep)
        sequence.close()
        job.sequences.remove(sequence)
        if not job.sequences:
            del self._jobs[job.id]
            self._events.append(
                Finished(request_id=job.id, usage=job.usage(), timings=job.timings())
            )

    def _fail(self, job: Job, message: str) -> None:
        self.cancel(job.id)
        self._events.append(Failed(request_id=job.id, code="internal_error", message=message))
