"""Image files -> preprocessed images, on threads of their own, so that engines and event loop never wait.

The decoders release the interpreter's lock while they decode and resize, so threads are enough. No limit on
the images that wait is needed here: each has been admitted to a graph's queue before. An image is left out,
before any work is spent on it, if its request was cancelled or is late.

The header of an image says how much memory decoding will take. What takes much has threads of its own, behind
those of small images, and begins only when the memory for it is free: however large the images of others are,
a small one is decoded soon, and the process stays within its memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread

from artifact.errors import ResiduumError
from artifact.manifest import Preprocessing
from artifact.preprocess import ImageError, Limits, Prepared, Preprocessed, prepare
from engines.machine import BEHIND, go_behind_the_loop, name_this_thread
from service.batching.smoothing import follow
from service.batching.types import Closed
from service.runtime.decode_request import Decoding, Pending, Then
from service.runtime.load import Memory
from service.telemetry.metrics import Metrics

MOST_WAITING = 4.0  # an estimate counts this many times the processor time of an image at most
SMALL_BYTES = 32 * 2**20  # of memory that decoding takes; a baseline JPEG of 8 megapixels


class DecodePool:
    """Threads that preprocess: `num_threads` for small images, and as many for large ones.

    Args:
        max_bytes: the memory that large images may take together while they are decoded.
    """

    def __init__(self, num_threads: int, limits: Limits, max_bytes: int, metrics: Metrics) -> None:
        self._num_threads = num_threads
        self._limits = limits
        self._metrics = metrics
        self._memory = Memory(max_bytes)
        self._pending = Pending(metrics)
        self._lock = Lock()  # of the queues: nothing comes behind what ends the threads
        self._image_s = 0.01
        self._byte_s = 2e-9  # of a large image
        self._small: SimpleQueue[tuple[Decoding, int] | None] = SimpleQueue()
        self._large: SimpleQueue[tuple[Decoding, int] | None] = SimpleQueue()
        self._closed = False
        for _ in range(num_threads):
            Thread(target=self._work_on_small, name="decode", daemon=True).start()
            Thread(target=self._work_on_large, name="decode-large", daemon=True).start()

    def seconds_for(self, num_images: int) -> float:
        """Return the seconds until that many more small images should be done, after those that wait."""
        return (self._pending.num_small + num_images) * self._image_s / self._num_threads

    def preprocess(
        self,
        images: Sequence[bytes],
        spec: Preprocessing,
        then: Then,
        *,
        keep_original: bool = False,
        deadline: float | None = None,
        late: Callable[[], Exception] = TimeoutError,
    ) -> Decoding:
        """Preprocess every image, and call `then` once, on a thread of the pool, unless it is cancelled.

        `then` gets the images in order, or the error of the first one that cannot be used: an ImageError.

        Args:
            deadline: a time of `time.monotonic()`. An image that no thread has begun by then fails the
                request with the error that `late` makes.

        Raises:
            Closed: after `close`.
        """
        decoding = Decoding(images, spec, then, self._pending, keep_original, deadline, late)
        with self._lock:
            if self._closed:
                raise Closed("the server decodes no more images")
            self._pending.add_small(len(images))
            for index in range(len(images)):
                self._small.put((decoding, index))
        return decoding

    def close(self) -> None:
        """End the threads; images that still wait fail with Closed."""
        with self._lock:
            self._closed = True
            for _ in range(self._num_threads):
                self._small.put(None)
                self._large.put(None)

    def _work_on_small(self) -> None:
        name_this_thread("decode")
        go_behind_the_loop()
        while (item := self._small.get()) is not None:
            decoding, index = item
            if (image := decoding.begin(index)) is not None:
                self._note(decoding, index, partial(self._decode_small, decoding, index, image))
            del item, decoding, image  # before waiting: they hold a photograph

    def _work_on_large(self) -> None:
        name_this_thread("decode-large")
        go_behind_the_loop(2 * BEHIND)
        while (item := self._large.get()) is not None:
            decoding, index = item
            if (prepared := decoding.begin_large(index)) is not None:
                work = partial(self._decode_large, decoding, prepared)
                self._note(decoding, index, work, prepared.num_bytes)
                del work
            del item, decoding, prepared

    def _note(
        self,
        decoding: Decoding,
        index: int,
        work: Callable[[], Preprocessed | None],
        large_bytes: int = 0,
    ) -> None:
        """Do the work, and note what became of the image; the work returns None if it was set aside.

        Args:
            large_bytes: the memory of a large image; 0: it has waited as a small one.
        """
        outcome: Preprocessed | Exception | None
        try:
            if self._closed:
                raise Closed("the server stopped before this image was decoded")
            decoding.check_time()
            outcome = work()
        except ResiduumError as error:
            outcome = error.with_traceback(None)  # whose frames hold the file
        except Exception as error:  # what we did not foresee is the request's, not the thread's
            outcome = error
        if outcome is not None:
            if large_bytes:
                self._pending.add_large(-1, -large_bytes)
            else:
                self._pending.add_small(-1)
            decoding.note(index, outcome)

    def _decode_small(self, decoding: Decoding, index: int, image: bytes) -> Preprocessed | None:
        """Return the image preprocessed, or None if it is large: then it waits for its turn."""
        started, worked = time.monotonic(), time.thread_time()
        is_large = False
        try:
            prepared = prepare(image, decoding.spec, self._limits, decoding.keep_original)
            if is_large := prepared.num_bytes > SMALL_BYTES:
                self._set_aside(decoding, index, prepared)
                return None
            return prepared.finish()
        finally:
            if not is_large:
                seconds = time.monotonic() - started
                # What a thread waits for a core counts, as it will at the next image; but not without a
                # limit, or one hiccup would make the pool look too slow for every deadline.
                worked = time.thread_time() - worked
                self._image_s = follow(self._image_s, min(seconds, MOST_WAITING * worked))
                self._metrics.decoded(seconds)

    def _set_aside(self, decoding: Decoding, index: int, prepared: Prepared) -> None:
        num_bytes = prepared.num_bytes
        if num_bytes > self._memory.max_bytes:
            raise ImageError(
                "too_many_pixels",
                f"Decoding the image takes {num_bytes >> 20:,} MiB of memory; "
                f"at most {self._memory.max_bytes >> 20:,} are given to it.",
                "Send a smaller copy, or a baseline JPEG, which takes a quarter of what a WebP takes.",
            )
        with self._lock:
            if self._closed:
                raise Closed("the server stopped before this image was decoded")
            ahead = self._pending.large_bytes
            if ahead:  # otherwise it runs, whatever it takes: only what runs heals an estimate
                decoding.check_time((ahead + num_bytes) * self._byte_s / self._num_threads)
            decoding.set_aside(index, prepared)
            self._large.put((decoding, index))

    def _decode_large(self, decoding: Decoding, prepared: Prepared) -> Preprocessed:
        with self._memory.reserved(prepared.num_bytes):
            decoding.check_time()  # again, after waiting
            started, worked = time.monotonic(), time.thread_time()
            try:
                return prepared.finish()
            finally:
                seconds, worked = time.monotonic() - started, time.thread_time() - worked
                self._byte_s = follow(self._byte_s, min(seconds, MOST_WAITING * worked) / prepared.num_bytes)
                self._metrics.decoded(seconds)
