"""Image files -> preprocessed images, on threads of their own, so that engines and event loop never wait.

Pillow and numpy release the interpreter's lock while they decode and resize, so threads are enough. No
limit on the images that wait is needed here: each has been admitted to a graph's queue before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from artifact.manifest import Preprocessing
from artifact.preprocess import ImageError, Limits, Preprocessed, preprocess
from service.batching.smoothing import follow
from service.telemetry.metrics import Metrics


class DecodePool:
    """`num_threads` threads that preprocess."""

    def __init__(self, num_threads: int, limits: Limits, metrics: Metrics) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
        self._num_threads = num_threads
        self._limits = limits
        self._metrics = metrics
        self._pending = 0  # images that wait for a thread or have one
        self._image_s = 0.01

    def seconds_for(self, num_images: int) -> float:
        """Return the seconds until that many more images should be done, after those that are pending."""
        return (self._pending + num_images) * self._image_s / self._num_threads

    async def preprocess(
        self, images: Sequence[bytes], spec: Preprocessing, keep_original: bool = False
    ) -> list[Preprocessed]:
        """Preprocess every image, in order.

        Raises:
            ImageError: the first image that cannot be used.
        """
        self._count(len(images))
        try:
            loop = asyncio.get_running_loop()
            work = [
                loop.run_in_executor(self._threads, self._preprocess, data, spec, keep_original)
                for data in images
            ]
            results = await asyncio.gather(*work, return_exceptions=True)
        finally:
            self._count(-len(images))
        return [_checked(result, index, len(images)) for index, result in enumerate(results)]

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _count(self, num_more: int) -> None:
        self._pending += num_more
        self._metrics.decoding(self._pending)

    def _preprocess(self, data: bytes, spec: Preprocessing, keep_original: bool) -> Preprocessed:
        started = time.monotonic()
        try:
            return preprocess(data, spec, self._limits, keep_original)
        finally:
            seconds = time.monotonic() - started
            self._image_s = follow(self._image_s, seconds)
            self._metrics.decoded(seconds)


def _checked(result: Preprocessed | BaseException, index: int, num_images: int) -> Preprocessed:
    """Return the image, or raise what is wrong with it; of several images the error says which one."""
    if isinstance(result, ImageError) and num_images > 1:
        detail = f"Image {index}: {result.detail}"
        raise type(result)(result.code, detail, result.hint, image_index=index) from result
    if isinstance(result, BaseException):
        raise result
    return result
