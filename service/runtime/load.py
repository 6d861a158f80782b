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
FULL = "The images that wait take as much memory as the server gives them."
LOOK_S = 0.02  # how often the event loop's lag is measured
FORGET = 0.8  # of the lag, what a smaller measurement leaves


class HeldBytes:
    """The bytes of all bodies that have come and are not answered yet, within a limit.

    Where there is no room for a body, larger ones that are still coming give way: so clients that send much,
    or stop in the middle, do not keep small images out.

    Args:
        limit_bytes: the most that may be held. It bounds what waits where time alone does not: large files,
            and requests with long deadlines.
    """

    def __init__(self, limit_bytes: float = inf) -> None:
        self._limit_bytes = limit_bytes
        self.num_bytes = 0
        self.coming: set[Holding] = set()
        self.coming_bytes = 0  # of `num_bytes`, what may still have to give way

    def hold(self, declared: int = 0) -> Holding:
        """Return what one request holds: nothing yet.

        A body that is too long for an idle server is left to the route, which knows how long a body may be.

        Raises:
            Overloaded: there would be no room for the declared bytes, whatever gave way.
        """
        if declared <= self._limit_for(declared) < self.num_bytes - self.coming_bytes + declared:
            raise Overloaded(FULL)
        holding = Holding(self)
        self.coming.add(holding)
        return holding

    def make_room(self, num_more: int, holding: Holding) -> None:
        """Let larger bodies give way until that many bytes more fit; raise Overloaded if they never will."""
        num_bytes = holding.num_bytes + num_more
        too_many = self.num_bytes + num_more - self._limit_for(num_bytes)
        if too_many <= 0:
            return
        larger = [other for other in self.coming if other.num_bytes > num_bytes]
        if sum(other.num_bytes for other in larger) < too_many:
            raise Overloaded(FULL)
        for other in sorted(larger, key=lambda other: other.num_bytes, reverse=True):
            if too_many > 0:
                too_many -= other.num_bytes
                other.give_way()

    def _limit_for(self, num_bytes: int) -> float:
        """Return how much may be held with a body of that size; large ones leave small ones some room."""
        return self._limit_bytes * (1 - RESERVE if num_bytes > SMALL_BODY else 1)


class Holding:
    """What one request holds.

    While its body comes it may have to give way: then `gave_way` is set, and `stop` is called.
    """

    __slots__ = ("_of", "gave_way", "num_bytes", "stop")

    def __init__(self, of: HeldBytes) -> None:
        self._of = of
        self.num_bytes = 0
        self.gave_way = False
        self.stop: Callable[[], None] | None = None

    def add(self, num_bytes: int) -> None:
        """Count bytes that have come; raise Overloaded if there is no room for them."""
        self.check()
        self._of.make_room(num_bytes, self)
        self._count(num_bytes)

    def drop(self, num_bytes: int) -> None:
        """Count bytes no more that the request has let go of."""
        self._count(-min(num_bytes, self.num_bytes))

    def check(self) -> None:
        """Raise Overloaded if the request had to give way."""
        if self.gave_way:
            raise Overloaded("The server took no more of this body: it needs its memory for smaller ones.")

    def complete(self) -> None:
        """Note that the whole body has come: from now on the request gives way to none."""
        self.check()
        if self in self._of.coming:
            self._of.coming.remove(self)
            self._of.coming_bytes -= self.num_bytes

    def give_way(self) -> None:
        """Let go of everything, and stop the request."""
        self.gave_way = True
        self.release()
        if self.stop is not None:
            self.stop()

    def release(self) -> None:
        """Count none of the request's bytes any more."""
        self._count(-self.num_bytes)
        self._of.coming.discard(self)

    def _count(self, num_more: int) -> None:
        self.num_bytes += num_more
        self._of.num_bytes += num_more
        if self in self._of.coming:
            self._of.coming_bytes += num_more


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
