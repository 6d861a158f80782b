"""Calls of many threads reach the loop in order, in few wakings; an error or a leaver ends the wait."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import partial
from threading import Thread

import pytest

from service.runtime.mailbox import Mailbox, results_of


def test_one_waking_for_all_that_a_thread_posts() -> None:
    async def main() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        mailbox = Mailbox(loop)
        made: list[int] = []
        wakings = 0
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(*args: object) -> object:
            nonlocal wakings
            wakings += 1
            return call_soon_threadsafe(*args)  # type: ignore[arg-type]

        loop.call_soon_threadsafe = counted  # type: ignore[assignment, method-assign]
        thread = Thread(target=lambda: [mailbox.post(partial(made.append, number)) for number in range(100)])
        thread.start()
        thread.join()  # the loop cannot look meanwhile
        while len(made) < 100:
            await asyncio.sleep(0)
        return made, wakings

    assert asyncio.run(main()) == (list(range(100)), 1)


def test_nothing_is_lost_while_threads_and_loop_race() -> None:
    async def main() -> int:
        mailbox = Mailbox(asyncio.get_running_loop())
        num_made = 0

        def count() -> None:
            nonlocal num_made
            num_made += 1

        threads = [Thread(target=lambda: [mailbox.post(count) for _ in range(2000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        while num_made < 8000:
            await asyncio.sleep(0)
        return num_made

    assert asyncio.run(asyncio.wait_for(main(), 60)) == 8000


def test_results_come_in_order_and_the_first_error_ends_the_wait() -> None:
    async def main() -> None:
        mailbox = Mailbox(asyncio.get_running_loop())
        futures: list[Future[int]] = [Future() for _ in range(3)]
        waiting = asyncio.create_task(results_of(futures, mailbox))
        for number in (2, 0, 1):
            await asyncio.to_thread(futures[number].set_result, number)
        assert await waiting == [0, 1, 2]

        futures = [Future() for _ in range(3)]
        waiting = asyncio.create_task(results_of(futures, mailbox))
        await asyncio.to_thread(futures[1].set_exception, ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await waiting
        assert futures[0].cancelled()
        assert futures[2].cancelled()

    asyncio.run(main())


def test_who_leaves_cancels_what_is_left() -> None:
    async def main() -> None:
        futures: list[Future[int]] = [Future() for _ in range(2)]
        waiting = asyncio.create_task(results_of(futures, Mailbox(asyncio.get_running_loop())))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert all(future.cancelled() for future in futures)

    asyncio.run(main())


def test_a_loop_that_has_ended_harms_no_thread() -> None:
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    mailbox.post(lambda: None)


def test_a_call_that_raises_does_not_take_the_others_along(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[int]:
        mailbox = Mailbox(asyncio.get_running_loop())
        made: list[int] = []
        mailbox.post(lambda: made.append(1 // 0))
        mailbox.post(partial(made.append, 2))
        while not made:
            await asyncio.sleep(0)
        return made

    assert asyncio.run(main()) == [2]
    assert "ZeroDivisionError" in caplog.text
