"""The load beside the queues: bytes that requests hold, memory of threads, and the event loop's lag."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from threading import Condition, Lock

from service.errors import Overloaded

LOOK_S = 0.02  # how often the event loop's lag is measured
FORGET = 0.8  # of the lag, what a smaller measurement leaves


class HeldBytes:
    """The bytes of all bodies that have come and are not answered yet, within a limit.

    Args:
        limit_bytes: the most that may be held. It bounds what waits where time alone does not: large files,
            and requests with long deadlines.
    """

    def __init__(self, limit_bytes: float = inf) -> None:
        self._limit_bytes = limit_bytes
        self.num_bytes = 0

    def check_room(self, num_bytes: int) -> None:
        """Raise Overloaded if that many bytes more would be too many.

        A body that is too long for an idle server is left to the route, which knows how long a body may be.
        """
        if num_bytes <= self._limit_bytes < self.num_bytes + num_bytes:
            raise Overloaded("The images that wait take as much memory as the server gives them.")

    def hold(self) -> Holding:
        """Return the bytes that one request holds, none so far."""
        return Holding(self)


class Holding:
    """What one request holds."""

    __slots__ = ("_all", "_num_bytes")

    def __init__(self, of: HeldBytes) -> None:
        self._all = of
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """Count bytes that have come; raise Overloaded if they are too many, and count them no more."""
        self._all.check_room(num_bytes)
        self._all.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def release(self) -> None:
        """Count none of the request's bytes any more."""
        self._all.num_bytes -= self._num_bytes
        self._num_bytes = 0


class Memory:
    """Memory that threads may take together; who waits for some gets it in turn."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._free = max_bytes
        self._turn = Lock()
        self._freed = Condition()

    @contextmanager
    def reserved(self, num_bytes: int) -> Iterator[None]:
        """Take memory as soon as that much is free, until the end of `with`; `max_bytes` at most."""
        assert num_bytes <= self.max_bytes
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._free >= num_bytes)
            self._free -= num_bytes
        try:
            yield
        finally:
            with self._freed:
                self._free += num_bytes
                self._freed.notify()


class LoopLag:
    """How late the event loop does what is due; a request waits that long before and after its work."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            self.seconds = max(time.monotonic() - due, FORGET * self.seconds)
