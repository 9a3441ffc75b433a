"""Log-probabilities of tokens, from the model's raw logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from runner.api import TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runner_llamacpp.vocabulary import Vocabulary

__all__ = ["token_logprob"]


def token_logprob(
    logits: NDArray[np.float32], token: int, n_top: int, vocabulary: Vocabulary
) -> TokenLogprob:
    """The chosen token's natural-log probability and the ``n_top`` likeliest tokens'.

    :param logits: ``[n_vocab] f32``, unnormalised, untouched by temperature, penalties or bias.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    shifted -= np.log(np.exp(shifted).sum())
    n_top = min(n_top, len(shifted))
    top: tuple[TopLogprob, ...] = ()
    if n_top:
        likeliest = np.argpartition(shifted, -n_top)[-n_top:]
        likeliest = likeliest[np.argsort(shifted[likeliest])[::-1]]
        top = tuple(TopLogprob(*_named(vocabulary, int(i)), float(shifted[i])) for i in likeliest)
    return TokenLogprob(*_named(vocabulary, token), float(shifted[token]), top)


def _named(vocabulary: Vocabulary, token: int) -> tuple[str, bytes]:
    piece = vocabulary.piece(token, special=True)
    return piece.decode("utf-8", "replace"), piece
