"""Writing an answer in steps, so that the writer can stop between two of them.

A writer is a generator: it yields before each part that takes time, and returns the bytes. The command line
runs it to its end; the server stops it when its client has left.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[None, None, T]


def finish(steps: Steps[T]) -> T:
    """Run all steps, and return what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
