"""How the next token of one sequence is chosen: a llama.cpp sampler chain, or plain argmax."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.api import RequestError
from runner_llamacpp.native import lib, set_fields

if TYPE_CHECKING:
    from array import array

    from runner.api import Sampling
    from runner_llamacpp.native import NativeContext
    from runner_llamacpp.vocabulary import Vocabulary

__all__ = ["Sampler", "check_sampling"]

#: What llama-server does when a request does not say.
DEFAULT_TEMPERATURE = 0.8
DEFAULT_TOP_K = 40
DEFAULT_TOP_P = 0.95
DEFAULT_MIN_P = 0.05
#: Penalties look at this many last tokens, the prompt's included.
PENALTY_WINDOW = 64
#: llama.cpp takes the seed 2**32 - 1 for "draw one", so seeds are taken modulo this.
_SEED_MODULUS = 2**32 - 1


def check_sampling(sampling: Sampling, vocabulary: Vocabulary) -> None:
    """Refuse what only the vocabulary can tell is wrong.

    :raises RequestError: ``logit_bias`` names a token that does not exist.
    """
    for token in sampling.logit_bias:
        if not 0 <= token < vocabulary.n_vocab:
            raise RequestError(
                f"logit_bias names token {token}, and the model's tokens are "
                f"0 to {vocabulary.n_vocab - 1}",
                param="logit_bias",
            )


class Sampler:
    """Chooses tokens for one sequence; keeps its random state across pauses. Close it.

    :param index: which choice of its prompt this is: choice ``i`` draws with ``seed + i``.
    :param prompt: its last tokens count for the penalties, as in llama-server.
    :param ban_end: never choose a token that ends the answer.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocabulary: Vocabulary,
        *,
        index: int,
        prompt: array[int],
        ban_end: bool,
    ) -> None:
        temperature = _or(sampling.temperature, DEFAULT_TEMPERATURE)
        bias = dict(sampling.logit_bias)
        if ban_end:
            bias |= dict.fromkeys(vocabulary.end_tokens, float("-inf"))
        penalties = _penalties(sampling)
        self._chain: Any = None
        if temperature <= 0 and not bias and penalties is None:
            return
        params = lib.llama_sampler_chain_default_params()
        set_fields(params, no_perf=True)
        self._chain = lib.llama_sampler_chain_init(params)
        if bias:
            self._add(_logit_bias(bias, vocabulary.n_vocab))
        if penalties is not None:
            self._add(
                lib.llama_sampler_init_penalties(vocabulary.n_vocab, PENALTY_WINDOW, *penalties)
            )
        if temperature <= 0:
            self._add(lib.llama_sampler_init_greedy())
        else:
            self._add_filters(sampling)
            self._add(lib.llama_sampler_init_temp(temperature))
            self._add(lib.llama_sampler_init_dist(_seed(sampling.seed, index)))
        if penalties is not None:
            for token in prompt[-PENALTY_WINDOW:]:
                lib.llama_sampler_accept(self._chain, token)

    def sample(self, context: NativeContext, row: int) -> int:
        """The next token, from the logits of the batch's token ``row``."""
        if self._chain is None:
            return int(np.argmax(context.logits(row)))
        return int(lib.llama_sampler_sample(self._chain, context.pointer, row))

    def close(self) -> None:
        """Free the chain."""
        if self._chain is not None:
            lib.llama_sampler_free(self._chain)
            self._chain = None

    def _add_filters(self, sampling: Sampling) -> None:
        top_k = _or(sampling.top_k, DEFAULT_TOP_K)
        typical_p = _or(sampling.typical_p, 1.0)
        top_p = _or(sampling.top_p, DEFAULT_TOP_P)
        min_p = _or(sampling.min_p, DEFAULT_MIN_P)
        if top_k > 0:
            self._add(lib.llama_sampler_init_top_k(int(top_k)))
        if typical_p < 1:
            self._add(lib.llama_sampler_init_typical(typical_p, 1))
        if top_p < 1:
            self._add(lib.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0:
            self._add(lib.llama_sampler_init_min_p(min_p, 1))

    def _add(self, link: Any) -> None:
        """The chain owns the link from here on."""
        lib.llama_sampler_chain_add(self._chain, link)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _penalties(sampling: Sampling) -> tuple[float, float, float] | None:
    """Repeat, frequency and presence penalty; None when they would change nothing."""
    repeat = _or(sampling.repeat_penalty, 1.0)
    frequency = _or(sampling.frequency_penalty, 0.0)
    presence = _or(sampling.presence_penalty, 0.0)
    if repeat == 1 and frequency == 0 and presence == 0:
        return None
    return repeat, frequency, presence


def _logit_bias(bias: dict[int, float], n_vocab: int) -> Any:
    entries = (lib.llama_logit_bias * len(bias))()
    for entry, (token, value) in zip(entries, bias.items(), strict=True):
        set_fields(entry, token=token, bias=value)
    return lib.llama_sampler_init_logit_bias(n_vocab, len(bias), entries)


def _seed(seed: int | None, index: int) -> int:
    if seed is None:
        return random.SystemRandom().randrange(_SEED_MODULUS)
    return (seed + index) % _SEED_MODULUS
