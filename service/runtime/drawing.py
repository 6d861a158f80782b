"""Threads that draw pictures: one picture may take many seconds, so only a few may wait.

A drawing is a generator of steps. The thread ends it between two steps once its request is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
        self._places = 0  # that are taken, by requests and by drawings whose request has left
        self._drawing_s = 0.5

    @contextmanager
    def place(self) -> Iterator[None]:
        """Keep a place for a drawing until the end of `with`, from before its image is decoded.

        Raises:
            Overloaded: all places are taken.
        """
        with self._lock:
            if self._places >= self._most:
                wait_s = self._places * self._drawing_s / self._num_threads
                raise Overloaded("As many pictures are waiting as the server takes.", wait_s)
            self._places += 1
        try:
            yield
        finally:
            self._give_back()

    async def draw(self, steps: Steps[bytes], deadline: float) -> bytes:
        """Run the steps of a drawing that has a place, and return what they return.

        Args:
            deadline: a time of `time.monotonic()`.

        Raises:
            TimeoutError: the deadline has passed.
        """
        gone = Event()
        drawing = [steps]  # emptied when nobody waits: the executor keeps it until a thread is free
        future = self._threads.submit(self._draw, drawing, gone, deadline)
        try:
            return await asyncio.wrap_future(future)
        finally:
            gone.set()
            drawing.clear()
            if not future.done():  # it has a place of its own until its next step
                with self._lock:
                    self._places += 1
                future.add_done_callback(lambda _: self._give_back())

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _draw(self, drawing: list[Steps[bytes]], gone: Event, deadline: float) -> bytes:
        started = time.monotonic()
        try:
            steps = drawing.pop()
        except IndexError:
            raise TimeoutError("the request of the drawing is over") from None
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

    def _give_back(self) -> None:
        with self._lock:
            self._places -= 1
