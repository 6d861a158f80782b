"""What each instance of an engine has for itself, lent to one run at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import LifoQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class Instances(Generic[T]):
    """Lends its items; the one that came back last goes first, because its memory is still warm."""

    def __init__(self, items: Sequence[T]) -> None:
        self._idle: LifoQueue[T] = LifoQueue()
        for item in items:
            self._idle.put(item)

    @contextmanager
    def lent(self) -> Iterator[T]:
        """One of them, until the block ends; where none is idle, wait."""
        item = self._idle.get()
        try:
            yield item
        finally:
            self._idle.put(item)
