"""Image files -> preprocessed images, on threads of their own, so that engines and event loop never wait.

The decoders release the interpreter's lock while they decode and resize, so threads are enough. No limit on
the images that wait is needed here: each has been admitted to a graph's queue before. An image is left out,
before any work is spent on it, if its request was cancelled or is late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock, RLock, Thread

from artifact.errors import ResiduumError
from artifact.manifest import Preprocessing
from artifact.preprocess import ImageError, Limits, Preprocessed, preprocess
from engines.machine import go_behind_the_loop, name_this_thread
from service.batching.smoothing import follow
from service.batching.types import Closed
from service.telemetry.metrics import Metrics

MOST_WAITING = 4.0  # an estimate counts this many times the processor time of an image at most

# What a request is told on a thread of the pool: its images in order, or what is wrong with them.
Then = Callable[[list[Preprocessed] | Exception], None]


class DecodePool:
    """`num_threads` threads that preprocess."""

    def __init__(self, num_threads: int, limits: Limits, metrics: Metrics) -> None:
        self._num_threads = num_threads
        self._limits = limits
        self._metrics = metrics
        self._lock = RLock()
        self._num_pending = 0  # images that wait for a thread or have one
        self._image_s = 0.01
        self._queue: SimpleQueue[tuple[Decoding, int] | None] = SimpleQueue()
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
        decoding = Decoding(images, spec, then, self._count, keep_original, deadline, late)
        with self._lock:  # so that nothing is queued behind what ends the threads
            if self._closed:
                raise Closed("the server decodes no more images")
            self._count(len(images))
            for index in range(len(images)):
                self._queue.put((decoding, index))
        return decoding

    def close(self) -> None:
        """End the threads; images that still wait fail with Closed."""
        with self._lock:
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
            decoding, index = item
            if (image := decoding.begin(index)) is not None:
                outcome = self._outcome(decoding, image)
                self._count(-1)
                decoding.note(index, outcome)
                del outcome
            del item, decoding, image  # before waiting: they hold a photograph

    def _outcome(self, decoding: Decoding, image: bytes) -> Preprocessed | Exception:
        """Return the image preprocessed, or what is wrong with it."""
        started, worked = time.monotonic(), time.thread_time()
        try:
            if self._closed:
                return Closed("the server stopped before this image was decoded")
            if decoding.deadline is not None and started > decoding.deadline:
                return decoding.late()
            done = preprocess(image, decoding.spec, self._limits, decoding.keep_original)
        except ResiduumError as error:
            return error.with_traceback(None)  # whose frames hold the file
        except Exception as error:  # what we did not foresee is the request's, not the thread's
            return error
        seconds = time.monotonic() - started
        # What a thread waits for a core counts, as it will at the next image; but not without a limit, or one
        # hiccup would make the pool look too slow for every deadline.
        worked = time.thread_time() - worked
        self._image_s = follow(self._image_s, min(seconds, MOST_WAITING * worked))
        self._metrics.decoded(seconds)
        return done


class Decoding:
    """The images of a request in the pool: some wait, some are done.

    Args:
        count: called with the number by which the images that wait or have a thread change.
    """

    def __init__(
        self,
        images: Sequence[bytes],
        spec: Preprocessing,
        then: Then,
        count: Callable[[int], None],
        keep_original: bool,
        deadline: float | None,
        late: Callable[[], Exception],
    ) -> None:
        self.spec = spec
        self.keep_original = keep_original
        self.deadline = deadline
        self.late = late
        self._waiting: dict[int, bytes] = dict(enumerate(images))
        self._outcomes: list[Preprocessed | Exception | None] = [None] * len(images)
        self._num_left = len(images)
        self._then: Then | None = then  # None: it was called, or nobody waits for it
        self._count = count
        self._lock = Lock()

    def begin(self, index: int) -> bytes | None:
        """Return an image, which belongs to the caller from now on; None if nobody wants it any more."""
        with self._lock:
            return self._waiting.pop(index, None)

    def cancel(self) -> None:
        """Let go of all images; a thread that has one finishes it, for nobody."""
        with self._lock:
            num_waiting = len(self._waiting)
            self._waiting.clear()
            self._outcomes.clear()
            self._then = None
        if num_waiting:
            self._count(-num_waiting)

    def note(self, index: int, outcome: Preprocessed | Exception) -> None:
        """Note what became of an image; the last one calls `then`."""
        with self._lock:
            if self._then is None:
                return
            self._outcomes[index] = outcome
            self._num_left -= 1
            if self._num_left:
                return
            then, self._then = self._then, None
            outcomes, self._outcomes = self._outcomes, []
        done = [outcome for outcome in outcomes if isinstance(outcome, Preprocessed)]
        then(done if len(done) == len(outcomes) else _first_error(outcomes))


def _first_error(outcomes: Sequence[Preprocessed | Exception | None]) -> Exception:
    """Return the error of the first image that failed; of several images the error says which one."""
    index, error = next(
        (index, outcome) for index, outcome in enumerate(outcomes) if isinstance(outcome, Exception)
    )
    if not isinstance(error, ImageError) or len(outcomes) == 1:
        return error
    named = type(error)(error.code, f"Image {index}: {error.detail}", error.hint, image_index=index)
    named.__cause__ = error
    return named
