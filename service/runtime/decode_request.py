"""The images of one request in the decode pool, and the count of those of all requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Lock

from artifact.manifest import Preprocessing
from artifact.preprocess import ImageError, Prepared, Preprocessed
from service.telemetry.metrics import Metrics

# What a request is told on a thread of the pool: its images in order, or what is wrong with them.
Then = Callable[[list[Preprocessed] | Exception], None]


class Pending:
    """The images that wait for a thread or have one: small ones, and those that were found to be large."""

    def __init__(self, metrics: Metrics) -> None:
        self.num_small = 0
        self.num_large = 0
        self.large_bytes = 0  # the memory that decoding these will take
        self._metrics = metrics
        self._lock = Lock()

    def add_small(self, count: int) -> None:
        with self._lock:
            self.num_small += count
            self._metrics.decoding(self.num_small + self.num_large)

    def add_large(self, count: int, num_bytes: int) -> None:
        with self._lock:
            self.num_large += count
            self.large_bytes += num_bytes
            self._metrics.decoding(self.num_small + self.num_large)


class Decoding:
    """The images of a request in the pool: some wait, some are done.

    Args:
        pending: counts the images of all requests.
    """

    def __init__(
        self,
        images: Sequence[bytes],
        spec: Preprocessing,
        then: Then,
        pending: Pending,
        keep_original: bool,
        deadline: float | None,
        late: Callable[[], Exception],
    ) -> None:
        self.spec = spec
        self.keep_original = keep_original
        self._deadline = deadline
        self._late = late
        self._waiting: dict[int, bytes] = dict(enumerate(images))
        self._set_aside: dict[int, Prepared] = {}  # large images, which wait for their turn
        self._outcomes: list[Preprocessed | Exception | None] = [None] * len(images)
        self._num_left = len(images)
        self._then: Then | None = then  # None: it was called, or nobody waits for it
        self._pending = pending
        self._lock = Lock()

    def begin(self, index: int) -> bytes | None:
        """Return an image, which belongs to the caller from now on; None if nobody wants it any more."""
        with self._lock:
            return self._waiting.pop(index, None)

    def begin_large(self, index: int) -> Prepared | None:
        """Return an image that was set aside; None if nobody wants it any more."""
        with self._lock:
            return self._set_aside.pop(index, None)

    def set_aside(self, index: int, prepared: Prepared) -> None:
        """Keep a large image until its turn, unless nobody wants it any more."""
        with self._lock:
            self._pending.add_small(-1)
            if self._then is not None:
                self._set_aside[index] = prepared
                self._pending.add_large(1, prepared.num_bytes)

    def check_time(self, takes_s: float = 0.0) -> None:
        """Raise what `late` makes if the deadline has passed, or will have passed after so many seconds."""
        if self._deadline is not None and time.monotonic() + takes_s > self._deadline:
            raise self._late()

    def cancel(self) -> None:
        """Let go of all images; a thread that has one finishes it, for nobody."""
        with self._lock:
            num_bytes = sum(prepared.num_bytes for prepared in self._set_aside.values())
            if self._waiting or self._set_aside:
                self._pending.add_small(-len(self._waiting))
                self._pending.add_large(-len(self._set_aside), -num_bytes)
            self._waiting.clear()
            self._set_aside.clear()
            self._outcomes.clear()
            self._then = None

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
