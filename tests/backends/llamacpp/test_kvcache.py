"""The books of the cache against a model of llama.cpp's memory, in any order of events."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from runner_llamacpp.kvcache import ALIGNMENT, KvCache, Resident


class MemoryModel:
    """Sequences as maps from position to a cell; copying shares cells."""

    def __init__(self) -> None:
        self.sequences: dict[int, dict[int, int]] = {}
        self.first: dict[int, int] = {}
        self._cells = itertools.count()

    def evaluate(self, seq_id: int, n: int) -> None:
        cells = self.sequences.setdefault(seq_id, {})
        start = len(cells)
        cells.update((start + i, next(self._cells)) for i in range(n))

    def remove(self, seq_id: int, start: int = -1) -> bool:
        cells = self.sequences.get(seq_id, {})
        self.sequences[seq_id] = {p: c for p, c in cells.items() if p < start}
        return True

    def copy(self, source: int, target: int, end: int) -> None:
        assert not self.sequences.get(target)
        cells = self.sequences.get(source, {})
        self.sequences[target] = {p: c for p, c in cells.items() if end < 0 or p < end}

    def first_position(self, seq_id: int) -> int:
        return self.first.get(seq_id, 0)


def _cache(memory: MemoryModel, **changes: object) -> KvCache:
    options = {
        "n_cells": 1024,
        "n_sequences": 4,
        "n_swa": 0,
        "can_cut": True,
        "most_idle": 1024,
        **changes,
    }
    options.setdefault("alignment", ALIGNMENT)
    return KvCache(memory, **options)  # type: ignore[arg-type]  # a dict of the right types


def _fill(cache: KvCache, memory: MemoryModel, resident: Resident, tokens: array[int]) -> None:
    todo = tokens[len(resident) :]
    assert cache.make_free(len(todo))
    memory.evaluate(resident.seq_id, len(todo))
    cache.append(resident, todo, len(todo))


def _finished(cache: KvCache, memory: MemoryModel, tokens: array[int], n_answer: int) -> Resident:
    resident = cache.open(tokens, len(tokens), reuse=True)
    _fill(cache, memory, resident, tokens + array("i", range(9000, 9000 + n_answer)))
    cache.retire(resident)
    return resident


def _tokens(n: int, first: int = 0) -> array[int]:
    return array("i", range(first, first + n))


def test_a_repeated_prompt_takes_over_the_aligned_part() -> None:
    memory = MemoryModel()
    cache = _cache(memory)
    donor = _finished(cache, memory, _tokens(300), n_answer=20)
    again = cache.open(_tokens(300), 300, reuse=True)
    assert again.seq_id == donor.seq_id
    assert len(again) == 2 * ALIGNMENT
    assert cache.n_used == 2 * ALIGNMENT


def test_a_continued_answer_is_taken_over_whole() -> None:
    memory = MemoryModel()
    cache = _cache(memory)
    _finished(cache, memory, _tokens(100), n_answer=30)
    prompt = _tokens(100) + array("i", range(9000, 9030)) + _tokens(10, 500)
    assert len(cache.open(prompt, len(prompt), reuse=True)) == 130


def test_a_common_beginning_is_shared_and_the_donor_stays() -> None:
    memory = MemoryModel()
    cache = _cache(memory)
    _finished(cache, memory, _tokens(200) + _tokens(50, 1000), n_answer=5)
    other = cache.open(_tokens(200) + _tokens(50, 2000), 250, reuse=True)
    assert len(other) == ALIGNMENT
    assert cache.n_used == ALIGNMENT
    third = cache.open(_tokens(200) + _tokens(50, 1000), 250, reuse=True)
    assert third.seq_id != other.seq_id


def test_one_token_is_always_left_to_evaluate() -> None:
    memory = MemoryModel()
    cache = _cache(memory)
    _finished(cache, memory, _tokens(256), n_answer=0)
    assert len(cache.open(_tokens(256), 256, reuse=True)) == 128


def test_a_window_that_is_gone_is_not_reused() -> None:
    memory = MemoryModel()
    cache = _cache(memory, n_swa=64)
    donor = _finished(cache, memory, _tokens(300), n_answer=0)
    memory.first[donor.seq_id] = 256 - 64 + 1
    assert len(cache.open(_tokens(300), 300, reuse=True)) == 0


def test_a_window_that_is_there_is_reused() -> None:
    memory = MemoryModel()
    cache = _cache(memory, n_swa=64)
    donor = _finished(cache, memory, _tokens(300), n_answer=0)
    memory.first[donor.seq_id] = 256 - 64
    assert len(cache.open(_tokens(300), 300, reuse=True)) == 256


def test_the_one_used_longest_ago_gives_way_first() -> None:
    memory = MemoryModel()
    cache = _cache(memory, n_sequences=2)
    old = _finished(cache, memory, _tokens(10, 100), n_answer=0).seq_id
    _finished(cache, memory, _tokens(10, 200), n_answer=0)
    assert cache.open(_tokens(10, 300), 10, reuse=True).seq_id == old


def test_idle_cells_are_limited_but_the_last_stays() -> None:
    memory = MemoryModel()
    cache = _cache(memory, most_idle=100)
    for first, n in ((1000, 60), (2000, 30), (3000, 40), (4000, 300)):
        _finished(cache, memory, _tokens(n, first), n_answer=0)
        held = [r.tokens[0] for r in cache._idle.values()]
        assert held == {60: [1000], 30: [1000, 2000], 40: [2000, 3000], 300: [4000]}[n]


def test_a_state_that_cannot_be_cut_is_never_reused() -> None:
    memory = MemoryModel()
    cache = _cache(memory, can_cut=False)
    _finished(cache, memory, _tokens(300), n_answer=3)
    assert not memory.sequences[0]
    assert len(cache.open(_tokens(300), 300, reuse=True)) == 0


def test_more_cells_than_there_are_is_an_error_of_ours() -> None:
    memory = MemoryModel()
    cache = _cache(memory, n_cells=8)
    resident = cache.open(_tokens(20), 20, reuse=True)
    assert not cache.make_free(9)
    with pytest.raises(ValueError, match="9 cells"):
        cache.append(resident, _tokens(9), 9)


class CacheMachine(RuleBasedStateMachine):
    """Prompts of few distinct beginnings, so that they share much."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryModel()
        self.cache = _cache(self.memory)
        self.running: list[tuple[Resident, array[int]]] = []

    @precondition(lambda self: self.cache.has_room_for_one)
    @rule(
        stem=st.integers(0, 2), n=st.integers(1, 300), tail=st.integers(0, 3), reuse=st.booleans()
    )
    def open(self, stem: int, n: int, tail: int, reuse: bool) -> None:
        tokens = _tokens(n, 1000 * stem) + _tokens(tail, 5000)
        resident = self.cache.open(tokens, len(tokens), reuse=reuse)
        assert len(resident) < len(tokens)
        assert resident.tokens == tokens[: len(resident)]
        self.running.append((resident, tokens))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), n=st.integers(1, 200))
    def evaluate(self, data: st.DataObject, n: int) -> None:
        resident, tokens = data.draw(st.sampled_from(self.running))
        todo = tokens[len(resident) : len(resident) + n] or array("i", [7])
        if self.cache.make_free(len(todo)):
            self.memory.evaluate(resident.seq_id, len(todo))
            self.cache.append(resident, todo, len(todo))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def improve(self, data: st.DataObject) -> None:
        resident, tokens = data.draw(st.sampled_from(self.running))
        if len(resident) < len(tokens):
            n = self.cache.improve(resident, tokens)
            assert n == len(resident) < len(tokens)
            assert resident.tokens == tokens[:n]

    @precondition(lambda self: self.running and self.cache.has_room_for_one)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        source, tokens = data.draw(st.sampled_from(self.running))
        target = self.cache.open(tokens, len(tokens), reuse=False)
        self.cache.fork(source, target)
        self.running.append((target, tokens))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        entry = data.draw(st.sampled_from(self.running))
        self.running.remove(entry)
        if keep:
            self.cache.retire(entry[0])
        else:
            self.cache.drop(entry[0])

    @rule()
    def evict(self) -> None:
        self.cache.evict_one()

    @invariant()
    def books_agree_with_memory(self) -> None:
        idle = self.cache._idle.values()
        residents = [resident for resident, _ in self.running]
        for resident in (*residents, *idle):
            cells = self.memory.sequences.get(resident.seq_id, {})
            assert sorted(cells) == list(range(len(resident)))
            assert len(resident.tokens) == len(resident.cells)
        known = {resident.seq_id for resident in (*residents, *idle)}
        assert len(known) + len(self.cache._free_ids) == 4
        assert not any(self.memory.sequences.get(i) for i in self.cache._free_ids)
        assert self._n_cells(residents) == self.cache.n_used
        held = self._n_cells([*residents, *idle])
        assert self.cache.n_cells - self.cache._ledger.n_free == held

    def _n_cells(self, residents: list[Resident]) -> int:
        return len({c for r in residents for c in self.memory.sequences.get(r.seq_id, {}).values()})


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCacheMachine = CacheMachine.TestCase
