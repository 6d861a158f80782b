"""Threads -> event loop: what several threads report is handed over in one call of the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TypeVar

T = TypeVar("T")


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
            self._calls.popleft()()


class Gathering:
    """Results of futures for one waiter on the loop; its methods run on the loop."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.waiter: asyncio.Future[None] = mailbox.loop.create_future()
        self._mailbox = mailbox
        self._num_left = 0

    def expect(self, futures: Sequence[Future[T]]) -> None:
        """Settle the waiter when all futures are done, or at the first error. Call it once, on any thread."""
        self._num_left = len(futures)
        for future in futures:
            future.add_done_callback(self._post)

    def fail(self, error: BaseException) -> None:
        """Give the waiter an error, unless it is settled or nobody waits any more."""
        if not self.waiter.done():
            self.waiter.set_exception(error)

    def _post(self, future: Future[T]) -> None:
        self._mailbox.post(partial(self._note, future))

    def _note(self, future: Future[T]) -> None:
        self._num_left -= 1
        if self.waiter.done():
            return
        if future.cancelled():
            self.waiter.cancel()
        elif (error := future.exception()) is not None:
            self.waiter.set_exception(error)
        elif not self._num_left:
            self.waiter.set_result(None)


async def results_of(futures: Sequence[Future[T]], mailbox: Mailbox) -> list[T]:
    """Return the results of all futures, in order.

    Raise the first error. Futures that are left are cancelled, also when the caller is.
    """
    gathering = Gathering(mailbox)
    gathering.expect(futures)
    try:
        await gathering.waiter
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
