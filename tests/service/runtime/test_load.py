"""Bytes that requests hold are counted and limited; the event loop's lag is seen, and forgotten."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from service.errors import Overloaded
from service.runtime.load import HeldBytes, Holding, LoopLag, Memory

MIB = 2**20


def come(held: HeldBytes, num_bytes: int) -> Holding:
    """A request whose whole body has come."""
    holding = held.hold()
    holding.add(num_bytes)
    holding.complete()
    return holding


def coming(held: HeldBytes, num_bytes: int) -> Holding:
    """A request of whose body so many bytes have come."""
    holding = held.hold()
    holding.add(num_bytes)
    return holding


def test_what_is_held_is_limited_and_given_back() -> None:
    held = HeldBytes(100)
    first, second = come(held, 40), come(held, 40)
    with pytest.raises(Overloaded):
        held.hold(30)
    third = held.hold(20)
    third.add(20)
    with pytest.raises(Overloaded):
        third.add(1)
    first.release()
    first.release()
    assert held.num_bytes == 60
    third.drop(15)
    assert held.num_bytes == 45
    second.release()
    third.release()
    assert (held.num_bytes, held.coming_bytes) == (0, 0)
    held.hold(101)  # the route says how long a body may be


def test_what_is_only_declared_keeps_nobody_out() -> None:
    held = HeldBytes(100)
    silent = [held.hold(100) for _ in range(50)]
    assert come(held, 100).num_bytes == 100
    assert not any(one.gave_way for one in silent)


def test_the_largest_that_is_still_coming_gives_way() -> None:
    held = HeldBytes(100)
    done, small, large, larger = come(held, 25), coming(held, 10), coming(held, 30), coming(held, 35)
    stopped: list[str] = []
    large.stop, larger.stop = lambda: stopped.append("large"), lambda: stopped.append("larger")
    newest = held.hold(70)  # there is room for it if both give way
    newest.add(20)
    assert stopped == ["larger"]
    assert (held.num_bytes, held.coming_bytes) == (85, 60)
    newest.add(5)
    small.add(15)
    assert stopped == ["larger", "large"]
    for gone in (large, larger):
        with pytest.raises(Overloaded):
            gone.add(1)
        with pytest.raises(Overloaded):
            gone.complete()
    for one in (done, small, newest, large):
        one.release()
    assert (held.num_bytes, held.coming_bytes) == (0, 0)


def test_nobody_gives_way_for_nothing() -> None:
    held = HeldBytes(100)
    come(held, 80)
    uploading, newest = coming(held, 15), coming(held, 5)
    with pytest.raises(Overloaded):
        newest.add(50)
    with pytest.raises(Overloaded):
        held.hold(30)
    assert not uploading.gave_way


def test_large_bodies_leave_small_ones_some_room() -> None:
    held = HeldBytes(80 * MIB)
    come(held, 60 * MIB)
    with pytest.raises(Overloaded):
        held.hold(11 * MIB)
    come(held, 10 * MIB)
    assert [come(held, MIB).num_bytes for _ in range(10)] == [MIB] * 10
    with pytest.raises(Overloaded):
        come(held, 1)


def test_memory_is_given_in_turn() -> None:
    memory = Memory(100)
    order: list[int] = []
    waiting = [threading.Event() for _ in range(3)]

    def take(number: int, num_bytes: int) -> None:
        waiting[number].set()
        with memory.reserved(num_bytes):
            order.append(number)

    with memory.reserved(60):
        threads = []
        for number, num_bytes in enumerate((50, 90, 10)):
            threads.append(threading.Thread(target=take, args=(number, num_bytes)))
            threads[-1].start()
            assert waiting[number].wait(60)
        assert order == []
    for thread in threads:
        thread.join(60)
    assert sorted(order) == [0, 1, 2]
    with memory.reserved(100):
        pass


def test_a_loop_that_is_kept_busy_is_late() -> None:
    async def busy() -> tuple[float, float]:
        lag = LoopLag()
        measuring = asyncio.create_task(lag.run())
        await asyncio.sleep(0)
        time.sleep(0.3)  # what must never happen on the loop
        while lag.seconds < 0.1:
            await asyncio.sleep(0.001)
        most = lag.seconds
        while lag.seconds > 0.1:
            await asyncio.sleep(0.001)
        measuring.cancel()
        return most, lag.seconds

    most, later = asyncio.run(asyncio.wait_for(busy(), 60))
    assert most > 0.2
    assert later < most
