"""Threads that load models: each load has a time limit, after which its thread is left alone.

An engine that hangs while it is opened cannot be stopped. It must not keep later changes waiting, nor the end
of the process. This module knows no models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from math import ceil
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

from service.errors import LoadRefused, NotReady

T = TypeVar("T")

LOOK_S = 0.5  # seconds between two looks whether a load has ended


class LoadTimedOut(LoadRefused):
    """A load took too long; its thread may hang for ever."""


class LoadThreads:
    """Runs each load on a thread of its own, for `limit_s` at most.

    The time is counted in looks rather than read from a clock: a process that was paused loads on.
    """

    def __init__(self, limit_s: float) -> None:
        self.stopped = False
        self._limit_s = limit_s
        self._running: dict[Thread, Event] = {}
        self._stopping = asyncio.Event()

    async def run(
        self,
        load: Callable[[Event], T],
        what: str,
        discard: Callable[[T], None] = lambda _: None,
        num_loads: int = 1,
    ) -> T:
        """Return what `load` returns.

        Args:
            load: blocks; it is given an event that is set when it should end early.
            what: is loaded, as the error says it.
            discard: is given what the load still returns after it was given up.
            num_loads: the number of models; each has the time limit.

        Raises:
            LoadTimedOut: the load takes too long.
            NotReady: the server is shutting down.
            Exception: whatever `load` raises.
        """
        if self.stopped:
            raise NotReady("The server is shutting down.")
        stop, ended = Event(), Future[T]()

        def work() -> None:
            try:
                result = load(stop)
            except BaseException as error:
                if ended.set_running_or_notify_cancel():
                    ended.set_exception(error)
            else:
                if ended.set_running_or_notify_cancel():
                    ended.set_result(result)
                else:
                    discard(result)
            finally:
                del self._running[thread]

        thread = Thread(target=work, name="load", daemon=True)
        self._running[thread] = stop
        thread.start()
        try:
            await self._wait(ended, num_loads)
        finally:  # the caller may have been cancelled
            if given_up := ended.cancel():
                stop.set()
        if not given_up:
            return ended.result()
        if self.stopped:
            raise NotReady("The server is shutting down.")
        raise LoadTimedOut(
            f"cannot load {what}: it took longer than --load-timeout, {self._limit_s * num_loads:g} s.",
            "What was loaded before is served on.",
        )

    def stop(self) -> None:
        """Tell all loads to end early, and wait for none."""
        self.stopped = True
        self._stopping.set()
        for stop in [*self._running.values()]:
            stop.set()

    def close(self, timeout_s: float) -> None:
        """Wait for loads that were told to stop, `timeout_s` at most."""
        end = monotonic() + timeout_s
        for thread in [*self._running]:
            thread.join(max(0.0, end - monotonic()))

    async def _wait(self, ended: Future[T], num_loads: int) -> None:
        """Wait until the load has ended, took too long or was told to stop."""
        look_s = min(LOOK_S, self._limit_s / 4)
        finished = asyncio.Event()
        loop = asyncio.get_running_loop()
        ended.add_done_callback(lambda _: loop.call_soon_threadsafe(finished.set))
        stopping = asyncio.create_task(self._stopping.wait())
        waiting = asyncio.create_task(finished.wait())
        try:
            for _ in range(ceil(self._limit_s * num_loads / look_s)):
                done, _ = await asyncio.wait(
                    {stopping, waiting}, timeout=look_s, return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    return
        finally:
            stopping.cancel()
            waiting.cancel()
