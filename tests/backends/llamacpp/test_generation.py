"""Text from a real model: what comes out, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runner.api import ContextLengthExceeded, RequestError, Sampling, UnsupportedOperation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.model

WHALES = "Give me a fun fact about whales."
FRANCE = "The capital of France is"


def test_greedy_answers_are_the_same_every_time(smollm2: Any) -> None:
    first = smollm2.chat(WHALES, max_tokens=16)
    second = smollm2.chat(WHALES, max_tokens=16)
    assert first.text() == second.text()
    assert len(first.text()) > 20


def test_completion_continues_the_prompt_as_it_stands(smollm2: Any) -> None:
    answer = smollm2.complete(FRANCE, max_tokens=4)
    assert answer.text().startswith(" Paris")
    assert answer.started.n_prompt == 5
    assert answer.reason() == "length"
    assert (answer.usage.n_prompt, answer.usage.n_completion) == (5, 4)
    assert answer.finished.timings.decode_s > 0


def test_a_prompt_of_token_ids_is_the_text_of_these_tokens(smollm2: Any) -> None:
    tokens = tuple(smollm2.engine._vocabulary.tokenise(FRANCE, add_special=False))
    assert smollm2.complete(tokens, max_tokens=4).text().startswith(" Paris")


@pytest.mark.parametrize("tokens", [(), (-1,), (5, 49152)])
def test_a_prompt_of_tokens_that_do_not_exist_is_refused(
    smollm2: Any, tokens: tuple[int, ...]
) -> None:
    with pytest.raises(RequestError) as refusal:
        smollm2.complete(tokens)
    assert refusal.value.param == "prompt"


def test_several_prompts_have_their_choices_in_order(smollm2: Any) -> None:
    answer = smollm2.complete(FRANCE, "1, 2, 3, 4,", max_tokens=3, n=2)
    assert answer.text(0) == answer.text(1)
    assert answer.text(0).startswith(" Paris")
    assert answer.text(2) == answer.text(3)
    assert "5" in answer.text(2)
    assert answer.usage.n_completion == 12


def test_an_end_token_stops_and_is_not_counted(smollm2: Any) -> None:
    answer = smollm2.chat("Say hi.", max_tokens=60, logprobs=0)
    assert answer.reason() == "stop"
    assert answer.usage.n_completion == len(answer.logprobs()) < 60
    assert "<|im_end|>" not in answer.text()


def test_ignore_eos_goes_on_to_the_limit(smollm2: Any) -> None:
    answer = smollm2.chat("Say hi.", max_tokens=60, ignore_eos=True)
    assert answer.reason() == "length"
    assert answer.usage.n_completion == 60


def test_no_tokens_can_be_asked_for(smollm2: Any) -> None:
    answer = smollm2.complete(FRANCE, max_tokens=0)
    assert (answer.text(), answer.reason(), answer.usage.n_completion) == ("", "length", 0)


def test_a_stop_string_across_tokens_is_never_shown(smollm2: Any) -> None:
    whole = smollm2.complete(FRANCE, max_tokens=12, logprobs=0)
    tokens = [entry.token for entry in whole.logprobs()]
    text = whole.text()
    stop = tokens[3][-2:] + tokens[4][:2]
    answer = smollm2.complete(FRANCE, max_tokens=12, stop=(stop, "never to be seen"), logprobs=0)
    cut = text.index(stop)
    assert answer.text() == text[:cut]
    assert answer.reason() == "stop"
    assert all(stop not in piece for piece in answer.pieces())
    # Entries of tokens that lie wholly inside the stop string are gone with it.
    shown = "".join(entry.token for entry in answer.logprobs())
    assert shown.startswith(text[:cut])
    assert len(shown) < cut + len(tokens[3])


def test_text_held_back_for_a_stop_string_comes_at_the_end(smollm2: Any) -> None:
    whole = smollm2.complete(FRANCE, max_tokens=6, logprobs=0)
    almost = whole.text()[-3:] + "\u0000"
    answer = smollm2.complete(FRANCE, max_tokens=6, logprobs=0, stop=(almost,))
    assert answer.text() == whole.text()
    assert answer.reason() == "length"
    assert answer.logprobs() == whole.logprobs()


def test_characters_are_never_split(smollm2: Any) -> None:
    """Emoji of several tokens in any order: whole ones come whole, others as U+FFFD."""
    tokens = smollm2.engine._vocabulary.tokenise("🦙🐋é漢", add_special=False)
    assert len(tokens) > 4
    sampling = Sampling(seed=1, temperature=1.5, logit_bias=dict.fromkeys(tokens, 60.0))
    answer = smollm2.complete("🦙🐋é漢" * 3, max_tokens=40, logprobs=0, sampling=sampling)
    data = b"".join(entry.token_bytes for entry in answer.logprobs())
    assert answer.text() == data.decode("utf-8", "replace")
    assert len(answer.logprobs()) == answer.usage.n_completion == 40


def test_streamed_pieces_are_the_whole_text(smollm2: Any) -> None:
    answer = smollm2.chat(WHALES, max_tokens=12)
    assert len(answer.pieces()) > 6
    assert all(answer.pieces())


def test_choices_share_one_evaluation_of_the_prompt(smollm2: Any) -> None:
    prompt = "Words and more words. " * 30
    before = smollm2.n_evaluated
    answer = smollm2.complete(
        prompt, n=3, max_tokens=4, ignore_eos=True, sampling=Sampling(seed=7, temperature=1)
    )
    n_prompt = answer.usage.n_prompt
    assert n_prompt > 100
    assert smollm2.n_evaluated - before == n_prompt + 3 * 3
    assert answer.usage.n_completion == 12
    assert len({answer.text(index) for index in range(3)}) > 1
    assert answer.usage.n_cached == 0


def test_more_choices_than_sequences_all_come(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    driver = open_driver(smollm2_path, max_sequences=2)
    answer = driver.complete(FRANCE, n=5, max_tokens=3)
    assert [answer.text(i) for i in range(5)] == [answer.text(0)] * 5


def test_a_long_prompt_names_both_numbers(smollm2: Any) -> None:
    with pytest.raises(ContextLengthExceeded) as refusal:
        smollm2.complete("word " * 1500)
    assert refusal.value.n_prompt >= 1500
    assert refusal.value.context_size == 1024
    assert refusal.value.param == "prompt"
    assert smollm2.engine.stats().queued == 0


def test_an_endless_prompt_is_refused_without_reading_all_of_it(smollm2: Any) -> None:
    with pytest.raises(ContextLengthExceeded):
        smollm2.complete("word " * 10_000_000)


def test_a_full_context_ends_with_length(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    driver = open_driver(smollm2_path, context_size=32, kv_cells=256)
    answer = driver.complete(FRANCE, ignore_eos=True)
    assert answer.reason() == "length"
    assert answer.usage.n_prompt + answer.usage.n_completion == 32


def test_a_prompt_may_use_all_but_one_token_of_the_context(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    driver = open_driver(smollm2_path, context_size=6, kv_cells=256)
    answer = driver.complete(FRANCE)
    assert (answer.reason(), answer.usage.n_completion) == ("length", 1)


def test_an_empty_prompt_begins_with_the_first_token(smollm2: Any) -> None:
    assert smollm2.complete("", max_tokens=1).usage.n_prompt == 1


def test_an_unknown_role_or_template_trouble_is_a_request_error(smollm2: Any) -> None:
    with pytest.raises(RequestError, match="stop string"):
        smollm2.complete(FRANCE, stop=("",))


def test_the_same_id_twice_is_refused(smollm2: Any) -> None:
    smollm2.start_completion(FRANCE)
    smollm2._n_requests = 0
    with pytest.raises(RequestError, match="r1"):
        smollm2.start_completion(FRANCE)


def test_gemma_completes_and_says_that_it_cannot_chat(
    open_driver: Callable[..., Any], gemma_path: Path
) -> None:
    """A second architecture: sliding windows, a bos token, no chat template."""
    driver = open_driver(gemma_path, context_size=512, kv_cells=512, max_sequences=2)
    assert "6" in driver.complete("1, 2, 3, 4, 5,", max_tokens=3).text()
    answer = driver.complete(FRANCE, max_tokens=1)
    vocabulary = driver.engine._vocabulary
    n_tokens = len(vocabulary.tokenise(FRANCE, add_special=False))
    assert answer.usage.n_prompt == n_tokens + 1
    with_bos = vocabulary.spelling(vocabulary.bos) + FRANCE
    assert driver.complete(with_bos, max_tokens=1).usage.n_prompt == n_tokens + 1
    with pytest.raises(RequestError, match=r"no chat template.*completions"):
        driver.chat("hi")


def test_an_embedding_model_refuses_to_chat(
    open_driver: Callable[..., Any], minilm_path: Path
) -> None:
    with pytest.raises(UnsupportedOperation, match="embeddings"):
        open_driver(minilm_path, context_size=64).chat("hi")
