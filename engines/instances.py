"""A pool of what each instance of an engine owns, such as a session; one run uses an item at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Instances(Generic[T]):
    """A pool of items; the one returned last is lent first, because its memory is still in the caches."""

    def __init__(self, items: Sequence[T]) -> None:
        self._idle: LifoQueue[T] = LifoQueue()
        for item in items:
            self._idle.put(item)

    @contextmanager
    def lent(self) -> Iterator[T]:
        """Lend an item until the block ends; wait while none is idle."""
        item = self._idle.get()
        try:
            yield item
        finally:
            self._idle.put(item)
