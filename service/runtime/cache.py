"""A cache of answers, by the SHA-256 of the images, the model, its version and the question.

The whole hash is compared, so two images never share an answer; a key has the same size whatever was asked.
A request for an answer that is being made waits for it instead of making it again. This module knows no HTTP
and no images: an answer is any object with a size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Generic, Protocol, TypeVar

from cachetools import LRUCache

from artifact.errors import Unavailable
from service.telemetry.metrics import Metrics


class Answer(Protocol):
    """What the cache stores: any object with a size in bytes."""

    @property
    def num_bytes(self) -> int: ...


T = TypeVar("T", bound=Answer)
Parameters = tuple[str | int | bytes, ...]

CACHE_HIT = "residuum; hit"  # the value of Cache-Status (RFC 9211)
# What an entry takes beside its answer's `num_bytes`: its key, places in three tables, which are larger than
# full while they grow, the answer's object and its stages. Measured with tracemalloc: 500 to 700.
ENTRY_BYTES = 768
INLINE_BYTES = 2**20  # more are hashed on another thread: hashing a megabyte takes a millisecond


def digest(images: Sequence[bytes]) -> bytes:
    """Return a hash of all images in order: of their hashes, so that no two lists of images are alike."""
    parts = (sha256(image).digest() for image in images)
    return sha256(b"".join(parts)).digest()


class AnswerCache:
    """The answers that were used last, up to `max_bytes`; with 0, no answer is kept or shared."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._kept: LRUCache[bytes, Any] = LRUCache(max_bytes, _size)
        self._making: dict[bytes, _Making[Any]] = {}

    async def get(
        self,
        images: Sequence[bytes],
        parameters: Parameters,
        make: Callable[[float], Coroutine[Any, Any, T]],
        deadline: float,
    ) -> tuple[T, bool]:
        """Return the answer for images and parameters, and whether it was kept or being made already.

        Requests that wait for the same answer are refused together. If some of them have more time than the
        one for which it was being made, it is made once more, with the time of the most patient.

        Args:
            parameters: everything that the answer depends on beside the images, its kind included.
            make: makes the answer within a deadline.
            deadline: when this request must be answered.

        Raises:
            what `make` raises; an error is never kept.
        """
        if not self._max_bytes:
            return await make(deadline), False
        key = sha256(await _digest(images) + repr(parameters).encode()).digest()
        latest = deadline
        while True:
            if (answer := self._kept.get(key)) is not None:
                self._metrics.cache(hit=True)
                return answer, True
            making = self._making.get(key)
            if making is None or making.task.done():
                self._metrics.cache(hit=False)
                task = asyncio.create_task(self._make(key, make, latest))
                task.add_done_callback(_mark_seen)
                making = self._making[key] = _Making(task, latest)
                return await self._wait(key, making, deadline), False
            try:
                answer = await self._wait(key, making, deadline)
            except Unavailable:
                if making.deadline >= deadline:
                    raise
                latest = max([deadline, *making.waiting.values()])  # of all who have not been told yet
                continue
            self._metrics.cache(hit=True)
            return answer, True

    def clear(self) -> None:
        """Forget all answers, finished or not, because an engine may have been wrong."""
        self._kept.clear()
        self._making.clear()

    async def _make(self, key: bytes, make: Callable[[float], Coroutine[Any, Any, T]], deadline: float) -> T:
        answer = await make(deadline)
        making = self._making.get(key)
        if making is not None and making.task is asyncio.current_task() and _size(answer) <= self._max_bytes:
            self._kept[key] = answer
        return answer

    async def _wait(self, key: bytes, making: _Making[T], deadline: float) -> T:
        """Wait for an answer; the last request that leaves cancels it, and later ones make their own."""
        request = object()
        making.waiting[request] = deadline
        try:
            return await asyncio.shield(making.task)
        finally:
            del making.waiting[request]
            if not making.waiting:
                making.task.cancel()
                if self._making.get(key) is making:
                    del self._making[key]


@dataclass(eq=False)
class _Making(Generic[T]):
    """An answer that is being made within a deadline, and the deadlines of the requests that wait for it."""

    task: asyncio.Task[T]
    deadline: float
    waiting: dict[object, float] = field(default_factory=dict)


def _mark_seen(task: asyncio.Task[Any]) -> None:
    """Read the error of a task that no request waits for any more: asyncio would log it otherwise."""
    if not task.cancelled():
        task.exception()


def _size(answer: Answer) -> int:
    return answer.num_bytes + ENTRY_BYTES


async def _digest(images: Sequence[bytes]) -> bytes:
    if sum(map(len, images)) > INLINE_BYTES:
        return await asyncio.to_thread(digest, images)
    return digest(images)
