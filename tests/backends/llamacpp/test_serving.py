"""Many requests at once: fairness, cells, pauses, cancels, shared prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runner.api import Generation, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.model

SUBJECTS = ("whales", "bread", "the moon", "trains", "glass", "honey", "maps", "rivers")
LONG = "The quick brown fox jumps over the lazy dog. "


def _kv_used(driver: Any) -> int:
    return int(driver.engine.stats().kv_used)


def test_eight_requests_progress_together(smollm2: Any) -> None:
    ids = [
        smollm2.start_completion(f"I like {s}", max_tokens=12, ignore_eos=True) for s in SUBJECTS
    ]
    together = 0
    while True:
        spoke, has_work = smollm2.step()
        together += len(spoke) == len(ids)
        if not has_work:
            break
    assert together >= 3
    answers = [smollm2.answer(request_id) for request_id in ids]
    assert all(answer.usage.n_completion == 12 for answer in answers)
    assert len({answer.text() for answer in answers}) > 4
    assert smollm2.engine.stats().active == 0


def test_more_requests_than_sequences_wait_their_turn(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    driver = open_driver(smollm2_path, max_sequences=2)
    ids = [driver.start_completion(f"I like {s}", max_tokens=4) for s in SUBJECTS[:5]]
    driver.step()
    stats = driver.engine.stats()
    assert (stats.active, stats.queued) == (2, 3)
    order: list[str] = []
    while True:
        spoke, has_work = driver.step()
        order += sorted(spoke - set(order))
        if not has_work:
            break
    assert order == ids


def test_with_fused_attention_an_answer_does_not_depend_on_the_company(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    """Exact for short prompts on this model: each is evaluated in a call of its own."""
    smollm2 = open_driver(smollm2_path, flash_attention="on")
    alone = [smollm2.complete(f"I like {s}", max_tokens=8).text() for s in SUBJECTS[:4]]
    ids = [smollm2.start_completion(f"I like {s}", max_tokens=8) for s in SUBJECTS[:4]]
    smollm2.run()
    assert [smollm2.answer(request_id).text() for request_id in ids] == alone


def test_a_long_prompt_does_not_stop_the_others(smollm2: Any) -> None:
    short = smollm2.start_completion("I like whales", max_tokens=200, ignore_eos=True)
    smollm2.step()
    long = smollm2.start_completion(LONG * 40, max_tokens=1)
    n_steps = 0
    while True:
        spoke, _ = smollm2.step()
        n_steps += 1
        assert short in spoke
        if long in spoke:
            break
    assert n_steps >= 4
    smollm2.engine.cancel(short)


def test_a_short_prompt_overtakes_a_long_one(smollm2: Any) -> None:
    long = smollm2.start_completion(LONG * 40, max_tokens=1)
    smollm2.step()
    short = smollm2.start_completion("I like whales", max_tokens=1)
    first = None
    while first is None:
        spoke, _ = smollm2.step()
        first = next(iter(spoke), None)
    assert first == short
    smollm2.run()
    assert smollm2.answer(long).usage.n_completion == 1


def test_cancel_frees_the_cells_at_once(smollm2: Any) -> None:
    stays = smollm2.start_completion("I like whales", max_tokens=30, ignore_eos=True)
    smollm2.step()
    before = _kv_used(smollm2)
    goes = smollm2.start_completion(LONG * 10, max_tokens=300, n=2)
    while not smollm2.answer(goes).pieces():
        smollm2.step()
    assert _kv_used(smollm2) > before + 100
    smollm2.engine.cancel(goes)
    assert _kv_used(smollm2) <= before + 10
    assert smollm2.engine.stats().active == 1
    n_events = len(smollm2.events[goes])
    smollm2.run()
    assert len(smollm2.events[goes]) == n_events
    assert smollm2.answer(stays).usage.n_completion == 30
    assert _kv_used(smollm2) == 0


def test_cancelling_what_waits_or_is_unknown_is_fine(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    driver = open_driver(smollm2_path, max_sequences=1)
    runs = driver.start_completion("I like whales", max_tokens=4)
    waits = driver.start_completion("I like bread", max_tokens=4)
    driver.step()
    driver.engine.cancel(waits)
    driver.engine.cancel("nobody")
    driver.run()
    assert driver.answer(runs).usage.n_completion == 4
    assert driver.answer(waits).events == []


def test_without_cells_the_youngest_pauses_and_all_finish(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    """Four answers of 72 tokens do not fit into 256 cells together; each alone does."""
    driver = open_driver(smollm2_path, context_size=100, kv_cells=256, max_sequences=4)
    ids = [
        driver.start_completion(f"I like {s}", max_tokens=72, ignore_eos=True) for s in SUBJECTS[:4]
    ]
    most_used, was_paused = 0, False
    while True:
        _, has_work = driver.step()
        stats = driver.engine.stats()
        most_used = max(most_used, stats.kv_used)
        was_paused |= stats.queued > 0 and all(driver.answer(i).pieces() for i in ids)
        if not has_work:
            break
    assert was_paused
    assert 200 < most_used <= 256
    answers = [driver.answer(request_id) for request_id in ids]
    assert [a.usage.n_completion for a in answers] == [72] * 4
    assert [a.usage.n_prompt for a in answers] == [a.started.n_prompt for a in answers]
    assert all(a.usage.n_cached == 0 for a in answers)
    alone = open_driver(smollm2_path, context_size=100, kv_cells=256, max_sequences=4)
    oldest = alone.complete("I like whales", max_tokens=72, ignore_eos=True)
    assert answers[0].text() == oldest.text()


def test_choices_pause_and_resume_too(open_driver: Callable[..., Any], smollm2_path: Path) -> None:
    driver = open_driver(smollm2_path, context_size=250, kv_cells=256, max_sequences=4)
    answer = driver.complete(
        LONG * 5, n=3, max_tokens=80, ignore_eos=True, sampling=Sampling(seed=1)
    )
    assert answer.usage.n_completion == 240
    assert [answer.reason(i) for i in range(3)] == ["length"] * 3


def test_a_prompt_that_was_answered_before_is_not_evaluated_again(smollm2: Any) -> None:
    first = smollm2.complete(LONG * 30, max_tokens=8)
    n_prompt = first.usage.n_prompt
    before = smollm2.n_evaluated
    second = smollm2.complete(LONG * 30, max_tokens=8)
    assert first.usage.n_cached == 0
    assert second.usage.n_cached == second.started.n_cached == n_prompt - 1
    assert smollm2.n_evaluated - before == n_prompt - second.usage.n_cached + 7
    assert second.text() == first.text()


def test_the_next_turn_of_a_chat_reuses_the_answer(smollm2: Any) -> None:
    question = "Tell me about whales. " * 10
    first = smollm2.chat(question, max_tokens=40, ignore_eos=True)
    second = smollm2.chat(question, first.text(), "Go on.", max_tokens=4)
    assert second.usage.n_cached > first.usage.n_prompt + 20


def test_a_system_prompt_is_shared_with_a_running_request(smollm2: Any) -> None:
    runs = smollm2.start_completion(LONG * 30 + "One", max_tokens=20, ignore_eos=True)
    while not smollm2.answer(runs).pieces():
        smollm2.step()
    used = _kv_used(smollm2)
    joins = smollm2.start_completion(LONG * 30 + "Two", max_tokens=2)
    while not smollm2.answer(joins).pieces():
        smollm2.step()
    assert smollm2.answer(joins).started.n_cached == 300
    assert _kv_used(smollm2) < used + 60
    smollm2.run()
    assert smollm2.answer(runs).usage.n_completion == 20


def test_a_system_prompt_is_evaluated_once_for_requests_that_come_together(smollm2: Any) -> None:
    ids = [smollm2.start_completion(LONG * 30 + s, max_tokens=2) for s in SUBJECTS[:4]]
    smollm2.run()
    answers = [smollm2.answer(request_id) for request_id in ids]
    assert [a.usage.n_cached for a in answers] == [0, 300, 300, 300]


def test_the_prefix_cache_can_be_switched_off(
    open_driver: Callable[..., Any], smollm2_path: Path
) -> None:
    driver = open_driver(smollm2_path, prefix_cache=False)
    for _ in range(2):
        assert driver.complete(LONG * 20, max_tokens=1).usage.n_cached == 0


def test_finished_sequences_give_way(open_driver: Callable[..., Any], smollm2_path: Path) -> None:
    driver = open_driver(smollm2_path, context_size=256, kv_cells=256, max_sequences=4)
    for number in range(4):
        prompt = f"{number} " + LONG * 15
        assert driver.complete(prompt, max_tokens=2).usage.n_completion == 2
        assert _kv_used(driver) == 0


def test_counters_add_up(smollm2: Any) -> None:
    first = smollm2.complete("I like whales", max_tokens=5, ignore_eos=True)
    second = smollm2.complete("I like bread", max_tokens=3, n=2, ignore_eos=True)
    stats = smollm2.engine.stats()
    assert stats.n_prompt == first.usage.n_prompt + second.usage.n_prompt
    assert stats.n_completion == 11
    assert stats.kv_cells == 2048


def test_when_llama_cpp_has_no_room_requests_still_finish(smollm2: Any) -> None:
    """As happens when a sliding window's cache is full: the call is refused, and made again."""
    decode = smollm2.engine._context.decode
    refusals = iter([0, 0, 0, 1, 1, 1])
    smollm2.engine._context.decode = lambda batch: next(refusals, 0) or decode(batch)
    ids = [smollm2.start_completion(f"I like {s}", max_tokens=6) for s in SUBJECTS[:4]]
    smollm2.run()
    assert all(smollm2.answer(request_id).usage.n_completion == 6 for request_id in ids)


def test_a_failed_evaluation_fails_its_requests_only(smollm2: Any) -> None:
    from runner.api import CompletionRequest, Failed, Finished

    decode = smollm2.engine._context.decode
    results = iter([0, -3])
    smollm2.engine._context.decode = lambda batch: next(results, 0) or decode(batch)

    def request(name: str) -> CompletionRequest:
        return CompletionRequest(id=name, prompts=("I like",), generation=Generation(max_tokens=3))

    smollm2.engine.submit(request("a"))
    smollm2.engine.step()
    events = smollm2.engine.step().events
    assert [type(e) for e in events if e.request_id == "a"] == [Failed]
    assert smollm2.engine.stats().kv_used == 0
    smollm2.engine.submit(request("b"))
    events = [e for _ in range(5) for e in smollm2.engine.step().events]
    assert isinstance(events[-1], Finished)
