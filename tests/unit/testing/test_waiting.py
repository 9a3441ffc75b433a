from __future__ import annotations

import anyio
import pytest

from runner.testing.waiting import wait_until, wait_until_async


def test_wait_until_returns_when_it_is_true() -> None:
    answers = iter([False, 0, "yes"])
    wait_until(lambda: next(answers))


def test_wait_until_gives_up_with_what_it_waited_for() -> None:
    with pytest.raises(TimeoutError, match=r"0\.05 s in vain for a miracle"):
        wait_until(lambda: False, timeout_s=0.05, what="a miracle")


@pytest.mark.anyio
async def test_wait_until_async_lets_others_run() -> None:
    done = anyio.Event()
    async with anyio.create_task_group() as tg:
        tg.start_soon(wait_until_async, done.is_set)
        await anyio.wait_all_tasks_blocked()
        done.set()


@pytest.mark.anyio
async def test_wait_until_async_gives_up() -> None:
    with pytest.raises(TimeoutError, match="a condition"):
        await wait_until_async(lambda: False, timeout_s=0.05)
