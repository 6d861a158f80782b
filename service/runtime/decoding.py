"""Image files -> preprocessed images, on threads of their own, so that engines and event loop never wait.

The decoders release the interpreter's lock while they decode and resize, so threads are enough. No limit on
the images that wait is needed here: each has been admitted to a graph's queue before. An image is left out,
before any work is spent on it, if its request was cancelled or is late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread

from artifact.manifest import Preprocessing
from artifact.preprocess import ImageError, Limits, Preprocessed, preprocess
from engines.machine import go_behind_the_loop, name_this_thread
from service.batching.smoothing import follow
from service.telemetry.metrics import Metrics

MOST_WAITING = 4.0  # an estimate counts this many times the processor time of an image at most


class DecodePool:
    """`num_threads` threads that preprocess."""

    def __init__(self, num_threads: int, limits: Limits, metrics: Metrics) -> None:
        self._num_threads = num_threads
        self._limits = limits
        self._metrics = metrics
        self._lock = Lock()
        self._num_pending = 0  # images that wait for a thread or have one
        self._image_s = 0.01
        self._queue: SimpleQueue[tuple[_Request, int] | None] = SimpleQueue()
        self._closed = False
        for _ in range(num_threads):
            Thread(target=self._work, name="decode", daemon=True).start()

    def seconds_for(self, num_images: int) -> float:
        """Return the seconds until that many more images should be done, after those that are pending."""
        return (self._num_pending + num_images) * self._image_s / self._num_threads

    def preprocess(
        self,
        images: Sequence[bytes],
        spec: Preprocessing,
        *,
        keep_original: bool = False,
        deadline: float | None = None,
        late: Callable[[], Exception] = TimeoutError,
    ) -> Future[list[Preprocessed]]:
        """Preprocess every image, and return them in order; a thread of the pool settles the future.

        Args:
            deadline: a time of `time.monotonic()`. An image that no thread has begun by then fails the
                request with the error that `late` makes.

        The future raises:
            ImageError: the first image that cannot be used.
        """
        request = _Request(images, spec, keep_original, deadline, late)
        self._count(len(images))
        for index in range(len(images)):
            self._queue.put((request, index))
        return request.future

    def close(self) -> None:
        """End the threads; images that still wait are cancelled."""
        self._closed = True
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _count(self, num_more: int) -> None:
        with self._lock:
            self._num_pending += num_more
            self._metrics.decoding(self._num_pending)

    def _work(self) -> None:
        name_this_thread("decode")
        go_behind_the_loop()
        while (item := self._queue.get()) is not None:
            request, index = item
            if self._closed:
                request.future.cancel()
            outcome = self._outcome(request, index)
            self._count(-1)
            request.note(index, outcome)
            del item, request, outcome  # before waiting: they hold a photograph

    def _outcome(self, request: _Request, index: int) -> Preprocessed | Exception | None:
        """Return the image, what is wrong with it, or None if nobody wants it any more."""
        started, worked = time.monotonic(), time.thread_time()
        if request.future.cancelled():
            return None
        if request.deadline is not None and started > request.deadline:
            return request.late()
        try:
            return preprocess(request.images[index], request.spec, self._limits, request.keep_original)
        except Exception as error:  # also what we did not foresee: it is the request's, not the thread's
            return error
        finally:
            seconds = time.monotonic() - started
            # What a thread waits for a core counts, as it will at the next image; but not without a limit, or
            # one hiccup would make the pool look too slow for every deadline.
            worked = time.thread_time() - worked
            self._image_s = follow(self._image_s, min(seconds, MOST_WAITING * worked))
            self._metrics.decoded(seconds)


class _Request:
    """The images of a request, some of them preprocessed."""

    def __init__(
        self,
        images: Sequence[bytes],
        spec: Preprocessing,
        keep_original: bool,
        deadline: float | None,
        late: Callable[[], Exception],
    ) -> None:
        self.images = images
        self.spec = spec
        self.keep_original = keep_original
        self.deadline = deadline
        self.late = late
        self.future: Future[list[Preprocessed]] = Future()
        self._outcomes: list[Preprocessed | Exception | None] = [None] * len(images)
        self._num_left = len(images)
        self._lock = Lock()

    def note(self, index: int, outcome: Preprocessed | Exception | None) -> None:
        """Note what became of an image; the last one settles the future."""
        with self._lock:
            self._outcomes[index] = outcome
            self._num_left -= 1
            if self._num_left:
                return
        if not self.future.set_running_or_notify_cancel():
            return
        done = [outcome for outcome in self._outcomes if isinstance(outcome, Preprocessed)]
        if len(done) == len(self._outcomes):
            self.future.set_result(done)
        else:
            self.future.set_exception(self._first_error())

    def _first_error(self) -> Exception:
        """Return the error of the first image that failed; of several images the error says which one."""
        index, error = next(
            (index, outcome) for index, outcome in enumerate(self._outcomes) if isinstance(outcome, Exception)
        )
        if not isinstance(error, ImageError) or len(self._outcomes) == 1:
            return error
        named = type(error)(error.code, f"Image {index}: {error.detail}", error.hint, image_index=index)
        named.__cause__ = error
        return named
