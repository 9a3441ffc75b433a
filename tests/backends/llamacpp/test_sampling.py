"""Choosing tokens: seeds, bias, penalties, log-probabilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from runner.api import RequestError, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.model

FRANCE = "The capital of France is"
STORY = "Once upon a time there was"


def test_the_same_seed_gives_the_same_text(smollm2: Any) -> None:
    texts = [
        smollm2.complete(STORY, max_tokens=12, sampling=Sampling(seed=seed, temperature=1.2)).text()
        for seed in (11, 11, 12)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_without_a_seed_texts_differ(smollm2: Any) -> None:
    texts = {
        smollm2.complete(STORY, max_tokens=12, sampling=Sampling(temperature=1.5)).text()
        for _ in range(3)
    }
    assert len(texts) > 1


def test_choice_i_draws_with_seed_plus_i(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    """With fused attention, where company changes nothing."""
    smollm2 = open_driver(smollm2_path, flash_attention="on")
    both = smollm2.complete(STORY, n=2, max_tokens=8, sampling=Sampling(seed=5, temperature=1.2))
    alone = smollm2.complete(STORY, max_tokens=8, sampling=Sampling(seed=6, temperature=1.2))
    assert both.text(1) == alone.text()
    assert both.text(0) != both.text(1)


def test_a_banned_token_does_not_come(smollm2: Any) -> None:
    (paris,) = smollm2.engine._vocabulary.tokenise(" Paris", add_special=False)
    banned = Sampling(temperature=0, logit_bias={paris: -100.0})
    assert " Paris" not in smollm2.complete(FRANCE, max_tokens=4, sampling=banned).text()
    (sky,) = smollm2.engine._vocabulary.tokenise(" sky", add_special=False)
    forced = Sampling(temperature=0, logit_bias={sky: 100.0})
    assert smollm2.complete(FRANCE, max_tokens=3, sampling=forced).text() == " sky sky sky"


@pytest.mark.parametrize("token", [-1, 49152])
def test_a_bias_on_no_token_is_refused(smollm2: Any, token: int) -> None:
    with pytest.raises(RequestError) as refusal:
        smollm2.complete(FRANCE, sampling=Sampling(logit_bias={token: 1.0}))
    assert refusal.value.param == "logit_bias"


def test_penalties_keep_a_token_from_repeating(smollm2: Any) -> None:
    (sky,) = smollm2.engine._vocabulary.tokenise(" sky", add_special=False)
    biased = Sampling(temperature=0, logit_bias={sky: 30.0})
    for penalty in ("frequency_penalty", "presence_penalty"):
        sampling = msgspec.structs.replace(biased, **{penalty: 60.0})
        text = smollm2.complete(FRANCE, max_tokens=4, sampling=sampling).text()
        assert text.count(" sky") == 1
    assert (
        "is is"
        not in smollm2.complete(
            "is is is is", max_tokens=2, sampling=Sampling(temperature=0, repeat_penalty=5.0)
        ).text()
    )


@pytest.mark.parametrize(
    "narrow",
    [{"top_k": 1}, {"top_p": 0.0001}, {"min_p": 1.0}, {"typical_p": 0.0001, "top_k": 1}],
)
def test_a_filter_that_leaves_one_token_is_greedy(smollm2: Any, narrow: dict[str, Any]) -> None:
    greedy = smollm2.complete(FRANCE, max_tokens=4).text()
    hot = Sampling(temperature=2.0, seed=3, **narrow)
    assert smollm2.complete(FRANCE, max_tokens=4, sampling=hot).text() == greedy


def test_logprobs_are_the_softmax_of_the_raw_logits(smollm2: Any) -> None:
    """Whatever the sampling does to them: here temperature, a bias and a penalty."""
    seen: list[np.ndarray[Any, Any]] = []
    logits = smollm2.engine._context.logits

    def remembering(row: int) -> np.ndarray[Any, Any]:
        seen.append(logits(row).copy())
        return seen[-1]

    smollm2.engine._context.logits = remembering
    sampling = Sampling(temperature=2.0, seed=1, logit_bias={5: 3.0}, presence_penalty=1.0)
    answer = smollm2.complete(FRANCE, max_tokens=5, logprobs=3, sampling=sampling)
    vocabulary = smollm2.engine._vocabulary
    assert len(answer.logprobs()) == len(seen) == 5
    for entry, row in zip(answer.logprobs(), seen, strict=True):
        values = row.astype(np.float64)
        expected = values - (values.max() + math.log(np.exp(values - values.max()).sum()))
        best = np.argsort(values)[::-1][:3]
        assert [t.token_bytes for t in entry.top] == [vocabulary.piece(int(i)) for i in best]
        assert [t.logprob for t in entry.top] == pytest.approx(expected[best], abs=1e-9)
        token = next(
            i for i in np.argsort(values)[::-1] if vocabulary.piece(int(i)) == entry.token_bytes
        )
        assert entry.logprob == pytest.approx(expected[token], abs=1e-9)
        assert entry.token == entry.token_bytes.decode()


def test_greedy_takes_the_likeliest(smollm2: Any) -> None:
    answer = smollm2.complete(FRANCE, max_tokens=5, logprobs=1)
    for entry in answer.logprobs():
        assert entry.token_bytes == entry.top[0].token_bytes
        assert entry.logprob == entry.top[0].logprob <= 0
    assert "".join(entry.token for entry in answer.logprobs()) == answer.text()


def test_no_logprobs_unless_asked(smollm2: Any) -> None:
    assert smollm2.complete(FRANCE, max_tokens=2).logprobs() == []
