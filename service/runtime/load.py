"""The load beside the queues: bytes that requests hold, memory of threads, and the event loop's lag."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from threading import Condition, Lock

from service.errors import Overloaded

RESERVE = 1 / 8  # of the memory for bodies, for those of at most SMALL_BODY
SMALL_BODY = 2**20
LOOK_S = 0.02  # how often the event loop's lag is measured
FORGET = 0.8  # of the lag, what a smaller measurement leaves


class HeldBytes:
    """The bytes of all bodies that come or have come and are not answered yet, within a limit.

    The bytes that a head declares count from the start. Where there is no room for a body, a larger one that
    is still coming gives way: so clients that send much, or stop in the middle, do not keep small images out.

    Args:
        limit_bytes: the most that may be held. It bounds what waits where time alone does not: large files,
            and requests with long deadlines.
    """

    def __init__(self, limit_bytes: float = inf) -> None:
        self._limit_bytes = limit_bytes
        self.num_bytes = 0
        self._coming: set[Holding] = set()

    def hold(self, declared: int = 0) -> Holding:
        """Return what one request holds: the bytes that it declares, at first; raise Overloaded.

        A body that is too long for an idle server is left to the route, which knows how long a body may be.
        """
        holding = Holding(self)
        if declared <= self.limit_for(declared):
            self._grow(holding, declared)
        self._coming.add(holding)
        return holding

    def limit_for(self, num_bytes: int) -> float:
        """Return how much may be held with a body of that size; large ones leave small ones some room."""
        return self._limit_bytes * (1 - RESERVE if num_bytes > SMALL_BODY else 1)

    def _grow(self, holding: Holding, num_bytes: int) -> None:
        """Let a request hold that many bytes, if it does not hold more; raise Overloaded."""
        num_more = num_bytes - holding.num_bytes
        if num_more <= 0:
            return
        while self.num_bytes + num_more > self.limit_for(num_bytes):
            larger = [other for other in self._coming if other.num_bytes > num_bytes]
            if not larger:
                raise Overloaded("The images that wait take as much memory as the server gives them.")
            max(larger, key=lambda other: other.num_bytes).give_way()
        self.num_bytes += num_more
        holding.num_bytes = num_bytes


class Holding:
    """What one request holds.

    While its body comes it may have to give way: then `gave_way` is set, and `stop` is called.
    """

    __slots__ = ("_all", "_num_come", "gave_way", "num_bytes", "stop")

    def __init__(self, of: HeldBytes) -> None:
        self._all = of
        self._num_come = 0
        self.num_bytes = 0
        self.gave_way = False
        self.stop: Callable[[], None] | None = None

    def add(self, num_bytes: int) -> None:
        """Count bytes that have come; raise Overloaded if there is no room for them."""
        self.check()
        self._num_come += num_bytes
        self._all._grow(self, self._num_come)

    def drop(self, num_bytes: int) -> None:
        """Count bytes no more that the request has let go of."""
        if not self.gave_way:
            self._num_come -= num_bytes
            self.num_bytes -= num_bytes
            self._all.num_bytes -= num_bytes

    def check(self) -> None:
        """Raise Overloaded if the request had to give way."""
        if self.gave_way:
            raise Overloaded("The server took no more of this body: it needs its memory for smaller ones.")

    def complete(self) -> None:
        """Note that the whole body has come: from now on the request gives way to none."""
        self.check()
        self._all._coming.discard(self)

    def give_way(self) -> None:
        """Let go of everything, and stop the request."""
        self.gave_way = True
        self.release()
        if self.stop is not None:
            self.stop()

    def release(self) -> None:
        """Count none of the request's bytes any more."""
        self._all._coming.discard(self)
        self._all.num_bytes -= self.num_bytes
        self.num_bytes = 0


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
