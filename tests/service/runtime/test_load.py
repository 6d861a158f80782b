"""Bytes that requests hold are counted and limited; the event loop's lag is seen, and forgotten."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import Overloaded
from service.runtime.load import HeldBytes, LoopLag


def test_what_is_held_is_limited_and_given_back() -> None:
    held = HeldBytes(100)
    first, second = held.hold(), held.hold()
    first.add(40)
    first.add(20)
    second.add(40)
    with pytest.raises(Overloaded):
        second.add(1)
    with pytest.raises(Overloaded):
        held.check_room(1)
    first.release()
    first.release()
    assert held.num_bytes == 40
    held.check_room(60)
    second.add(60)
    second.release()
    assert held.num_bytes == 0


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
