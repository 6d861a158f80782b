"""Pictures are drawn on threads of their own, as one may take many seconds; few may wait for them.

What nobody waits for any more ends soon: before each of its parts a drawing calls the check that it is given.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, Lock

from service.errors import Overloaded

SMOOTHING = 0.2  # weight of the newest measurement in the seconds a drawing takes

Draw = Callable[[Callable[[], None]], bytes]


class DrawingPool:
    """`num_threads` threads that draw, for which `capacity` drawings may wait."""

    def __init__(self, num_threads: int = 2, capacity: int = 16) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="draw")
        self._num_threads = num_threads
        self._most = num_threads + capacity
        self._lock = Lock()  # of the next two: a thread tells when its drawing has ended
        self._pending = 0  # drawings that wait for a thread or have one
        self._drawing_s = 0.5

    def check_room(self) -> None:
        """Raise Overloaded if `draw` would; it keeps no place."""
        with self._lock:
            if self._pending >= self._most:
                wait_s = self._pending * self._drawing_s / self._num_threads
                raise Overloaded("As many pictures are waiting as the server takes.", wait_s)

    async def draw(self, draw: Draw, deadline: float) -> bytes:
        """What `draw` returns. It is called with a check, which raises when it should end.

        Args:
            deadline: a time of `time.monotonic()`.

        Raises:
            Overloaded: as many drawings wait as may.
            TimeoutError: the deadline has passed.
        """
        gone = Event()

        def check() -> None:
            if gone.is_set() or time.monotonic() > deadline:
                raise TimeoutError("nobody waits for the drawing any more")

        self.check_room()
        with self._lock:
            self._pending += 1
        future = self._threads.submit(self._draw, draw, check)
        future.add_done_callback(self._ended)  # also if it is cancelled while it waits
        try:
            return await asyncio.wrap_future(future)
        finally:
            gone.set()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _draw(self, draw: Draw, check: Callable[[], None]) -> bytes:
        check()
        started = time.monotonic()
        drawn = draw(check)
        with self._lock:
            self._drawing_s += SMOOTHING * (time.monotonic() - started - self._drawing_s)
        return drawn

    def _ended(self, _: Future[bytes]) -> None:
        with self._lock:
            self._pending -= 1
