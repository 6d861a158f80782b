"""Threads -> event loop: what several threads report is handed over in one call of the loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger("residuum")


class Mailbox:
    """Calls for one event loop, posted by threads.

    Waking the loop costs more than handing over a result. The first call that is posted wakes the loop, which
    then makes all calls that have come meanwhile: a batch's results take one waking, not one an image.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, call: Callable[[], None]) -> None:
        """Let the loop make the call soon; nothing happens if the loop has ended. Any thread may post."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits for the call
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # before the last look, so that no call is left behind
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:  # the calls behind it are those of other requests
                logger.exception("A call that a thread had posted failed")


class Gathering:
    """Results of futures for one waiter on the loop. One thread, any, calls `expect` or `fail`, once."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._waiter: asyncio.Future[None] = mailbox.loop.create_future()
        self._num_left = 0

    async def wait(self) -> None:
        """Wait until all futures are done; raise the first error."""
        await self._waiter

    def expect(self, futures: Sequence[Future[T]]) -> None:
        """Let the waiter wait for these futures, or for the first error of one."""
        self._num_left = len(futures)
        for future in futures:
            future.add_done_callback(self._post)

    def fail(self, error: Exception) -> None:
        """Give the waiter an error."""
        self._mailbox.post(partial(self._settle, error))

    def _post(self, future: Future[T]) -> None:
        self._mailbox.post(partial(self._note, future))

    def _note(self, future: Future[T]) -> None:
        self._num_left -= 1
        if future.cancelled():
            self._waiter.cancel()
        elif (error := future.exception()) is not None or not self._num_left:
            self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        if self._waiter.done():  # settled, or nobody waits any more
            return
        if error is None:
            self._waiter.set_result(None)
        else:
            self._waiter.set_exception(error)


async def results_of(futures: Sequence[Future[T]], mailbox: Mailbox) -> list[T]:
    """Return the results of all futures, in order.

    Raise the first error. Futures that are left are cancelled, also when the caller is.
    """
    gathering = Gathering(mailbox)
    gathering.expect(futures)
    try:
        await gathering.wait()
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
