"""Loads on threads that are given up when they take too long."""

from __future__ import annotations

import asyncio
from queue import Queue
from threading import Event

import pytest

from service.errors import NotReady
from service.runtime.load_threads import LoadThreads, LoadTimedOut


def test_it_returns_what_the_load_returns_and_raises_what_it_raises() -> None:
    def fail(stop: Event) -> None:
        raise KeyError("what nobody foresaw")

    async def check() -> None:
        threads = LoadThreads(60)
        assert await threads.run(lambda stop: stop.is_set(), "a model") is False
        with pytest.raises(KeyError, match="what nobody foresaw"):
            await threads.run(fail, "a model")
        threads.close(60)

    asyncio.run(check())


def test_what_a_load_returns_too_late_is_discarded() -> None:
    late: Queue[str] = Queue()

    def load(stop: Event) -> str:
        assert stop.wait(60), "it is told to end"
        return "late"

    async def check() -> None:
        threads = LoadThreads(0.01)
        with pytest.raises(LoadTimedOut, match=r"cannot load a model: .* --load-timeout, 0\.01 s"):
            await threads.run(load, "a model", late.put)
        assert await threads.run(lambda _: "in time", "another", late.put) == "in time"
        threads.close(60)

    asyncio.run(check())
    assert late.get(timeout=60) == "late"
    assert late.empty()


def test_a_stop_waits_for_no_load_and_lets_none_begin() -> None:
    hangs, for_ever = Event(), Event()

    def load(stop: Event) -> None:
        hangs.set()
        for_ever.wait()

    async def check() -> None:
        threads = LoadThreads(600)
        loading = asyncio.create_task(threads.run(load, "a model"))
        await asyncio.to_thread(hangs.wait)
        threads.stop()
        for refused in (loading, threads.run(load, "a model")):
            with pytest.raises(NotReady, match="shutting down"):
                await refused
        threads.close(0)

    asyncio.run(check())
    for_ever.set()
