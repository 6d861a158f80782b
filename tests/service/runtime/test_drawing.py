"""Drawings run on their own threads, few wait for them, and those that nobody waits for end."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from introspection.steps import Steps
from service.errors import Overloaded
from service.runtime.drawing import DrawingPool


class Easel:
    """A drawing that goes on, step by step, until it is let go or ended."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.let_go = threading.Event()
        self.ended_by: BaseException | None = None
        self.ended = threading.Event()

    def draw(self) -> Steps[bytes]:
        self.started.set()
        try:
            while not self.let_go.wait(0.001):
                yield
        except BaseException as error:
            self.ended_by = error
            raise
        finally:
            self.ended.set()
        return b"drawn"


@pytest.fixture
def pool() -> Iterator[DrawingPool]:
    """One thread, for which one drawing may wait."""
    made = DrawingPool(1, 1)
    yield made
    made.close()


async def until(happened: Callable[[], bool]) -> None:
    while not happened():
        await asyncio.sleep(0)


def has_room(pool: DrawingPool) -> bool:
    try:
        with pool.place():
            return True
    except Overloaded:
        return False


async def draw(pool: DrawingPool, easel: Easel, deadline: float = math.inf) -> bytes:
    with pool.place():
        return await pool.draw(easel.draw(), deadline)


def test_few_may_wait(pool: DrawingPool) -> None:
    async def fill() -> None:
        first, second = Easel(), Easel()
        tasks = [asyncio.create_task(draw(pool, easel)) for easel in (first, second)]
        await until(first.started.is_set)
        with pytest.raises(Overloaded) as refused:
            await draw(pool, Easel())
        assert refused.value.retry_after_s > 0
        assert not second.started.is_set()
        first.let_go.set()
        second.let_go.set()
        assert await asyncio.gather(*tasks) == [b"drawn", b"drawn"]
        await until(lambda: has_room(pool))

    asyncio.run(fill())


def test_what_nobody_waits_for_ends_and_frees_its_place(pool: DrawingPool) -> None:
    async def leave() -> None:
        running, waiting = Easel(), Easel()
        tasks = [asyncio.create_task(draw(pool, easel)) for easel in (running, waiting)]
        await until(running.started.is_set)
        assert not has_room(pool)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert running.ended.wait(60)
        assert isinstance(running.ended_by, GeneratorExit)
        last = Easel()
        last.let_go.set()
        await until(lambda: has_room(pool))
        assert await draw(pool, last) == b"drawn"
        assert not waiting.started.is_set()

    asyncio.run(leave())


def test_a_deadline_ends_a_drawing(pool: DrawingPool) -> None:
    easel = Easel()
    with pytest.raises(TimeoutError):
        asyncio.run(draw(pool, easel, time.monotonic() - 1))
    assert not easel.started.is_set()
    with pytest.raises(TimeoutError):
        asyncio.run(draw(pool, easel, time.monotonic() + 0.2))
    assert easel.ended_by is not None
