"""The governor of threads, on made-up loads and on this machine's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from runner_llamacpp.contention import INTERVAL_S, Load, ThreadGovernor, read_load

if TYPE_CHECKING:
    from pathlib import Path


class World:
    """A clock, and the sums the governor reads."""

    def __init__(self) -> None:
        self.at = self.waited_s = self.idle_s = 0.0

    def read(self) -> Load:
        return Load(self.at, self.waited_s, self.idle_s)

    def run(self, governor: ThreadGovernor, *, seconds: float, waited: float, idle: float) -> None:
        """Let time pass, with so many seconds per second of waiting and of idleness."""
        steps = round(seconds / 0.05)
        for _ in range(steps):
            self.at += 0.05
            self.waited_s += waited * 0.05
            self.idle_s += idle * 0.05
            governor.look(self.at)


def test_a_busy_neighbour_costs_a_thread_and_its_end_gives_it_back() -> None:
    world = World()
    governor = ThreadGovernor(2, world.read)
    world.run(governor, seconds=1, waited=0.01, idle=0.0)
    assert governor.n_threads == 2
    world.run(governor, seconds=3 * INTERVAL_S, waited=0.7, idle=0.0)
    assert governor.n_threads == 1
    world.run(governor, seconds=5, waited=0.0, idle=0.0)
    assert governor.n_threads == 1
    world.run(governor, seconds=1.5, waited=0.0, idle=0.9)
    assert governor.n_threads == 2


def test_several_neighbours_cost_several_threads_but_never_the_last() -> None:
    world = World()
    governor = ThreadGovernor(8, world.read)
    world.run(governor, seconds=0.3, waited=3.0, idle=0.0)
    assert governor.n_threads == 5
    world.run(governor, seconds=5, waited=3.0, idle=0.0)
    assert governor.n_threads == 1


def test_a_thread_that_was_taken_back_in_vain_is_taken_back_later_the_next_time() -> None:
    world = World()
    governor = ThreadGovernor(2, world.read)

    def seconds_until(n: int, *, waited: float, idle: float) -> float:
        start = world.at
        while governor.n_threads != n:
            world.run(governor, seconds=0.05, waited=waited, idle=idle)
        return world.at - start

    seconds_until(1, waited=0.7, idle=0)
    waits = []
    for _ in range(4):
        waits.append(seconds_until(2, waited=0, idle=1))
        seconds_until(1, waited=0.7, idle=0)
    assert waits == sorted(waits)
    assert waits[-1] > 2 * waits[0]


def test_a_rest_without_work_is_not_taken_for_idle_processors() -> None:
    world = World()
    governor = ThreadGovernor(2, world.read)
    world.run(governor, seconds=1, waited=0.7, idle=0.0)
    assert governor.n_threads == 1
    for _ in range(5):
        world.at += 60
        world.idle_s += 60
        governor.look(world.at)
    assert governor.n_threads == 1


def test_where_the_system_does_not_tell_all_threads_are_used(tmp_path: Path) -> None:
    assert read_load(tmp_path) is None
    governor = ThreadGovernor(4, lambda: read_load(tmp_path))
    assert not governor.look(1.0)
    assert not governor.look(2.0)
    assert governor.n_threads == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_real_load_only_grows() -> None:
    one, two = read_load(), read_load()
    if one is None or two is None:
        pytest.skip("this kernel keeps no schedstats")
    assert two.at >= one.at
    assert two.waited_s >= one.waited_s
    assert two.idle_s >= one.idle_s
