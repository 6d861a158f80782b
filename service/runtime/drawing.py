"""Threads that draw pictures: one picture may take many seconds, so only a few may wait.

A drawing is a generator of steps. The thread ends it between two steps once its request is over.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock

from introspection.steps import Steps
from service.batching.smoothing import follow
from service.errors import Overloaded


class DrawingPool:
    """`num_threads` threads that draw, for which `capacity` drawings may wait."""

    def __init__(self, num_threads: int = 2, capacity: int = 16) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="draw")
        self._num_threads = num_threads
        self._most = num_threads + capacity
        self._lock = Lock()  # guards the next two, which the threads change
        self._pending = 0  # drawings that wait for a thread or have one
        self._drawing_s = 0.5

    def check_room(self) -> None:
        """Raise Overloaded if `draw` would; this reserves no place."""
        with self._lock:
            if self._pending >= self._most:
                wait_s = self._pending * self._drawing_s / self._num_threads
                raise Overloaded("As many pictures are waiting as the server takes.", wait_s)

    async def draw(self, steps: Steps[bytes], deadline: float) -> bytes:
        """Run the steps of a drawing, and return what they return.

        Args:
            deadline: a time of `time.monotonic()`.

        Raises:
            Overloaded: `capacity` drawings wait already.
            TimeoutError: the deadline has passed.
        """
        gone = Event()
        self.check_room()
        with self._lock:
            self._pending += 1
        future = self._threads.submit(self._draw, steps, gone, deadline)
        future.add_done_callback(self._ended)  # also if it is cancelled while it waits
        try:
            return await asyncio.wrap_future(future)
        finally:
            gone.set()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _draw(self, steps: Steps[bytes], gone: Event, deadline: float) -> bytes:
        started = time.monotonic()
        while True:
            if gone.is_set() or time.monotonic() > deadline:
                steps.close()
                raise TimeoutError("the request of the drawing is over")
            try:
                next(steps)
            except StopIteration as end:
                with self._lock:
                    self._drawing_s = follow(self._drawing_s, time.monotonic() - started)
                drawn: bytes = end.value
                return drawn

    def _ended(self, _: Future[bytes]) -> None:
        with self._lock:
            self._pending -= 1
