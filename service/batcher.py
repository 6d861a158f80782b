"""Entries -> batches -> engine -> futures.

An entry is one row for the graph: a dict of named arrays without the batch axis. It waits in a bounded queue
until the batcher's thread takes it into a batch, runs that, and gives every entry its own row of the outputs.
It knows no HTTP and no framework: it is threads and `concurrent.futures`, and tested without a server.

Why nothing can be handed to the wrong caller, or harm its batch: a future is claimed with
`set_running_or_notify_cancel` when the batch forms. Before that it can be cancelled, and is left out;
after that it cannot, so `set_result` never meets a cancelled future.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = Mapping[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]

SMOOTHING = 0.2  # weight of the newest measurement in the batch -> ms curve


class QueueFull(Exception):
    """No room for these rows; there should be some in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full for about {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class DeadlineMissed(Exception):
    """The rows cannot be, or were not, finished in time; the queue should be empty in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the deadline cannot be met; the queue needs about {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class Closed(Exception):
    """The batcher takes no more entries."""


class BatchFailed(Exception):
    """The engine failed on the batch that this entry was in; the cause is chained."""


@dataclass(frozen=True)
class Result:
    """One entry's row of every output, and how long it waited and ran."""

    outputs: dict[str, NDArray[Any]]
    queue_ms: float
    inference_ms: float


@dataclass(eq=False)
class _Entry:
    row: Row
    deadline: float | None
    queued: float
    future: Future[Result] = field(default_factory=Future)


def batch_sizes(max_batch_size: int) -> list[int]:
    """The sizes that batches are padded to: 1, 2, 4, ... and the maximum itself."""
    sizes = [1]
    while sizes[-1] * 2 < max_batch_size:
        sizes.append(sizes[-1] * 2)
    return sizes if max_batch_size == 1 else [*sizes, max_batch_size]


class Batcher:
    """One queue and one thread in front of one engine.

    Args:
        run: the engine's `run`: arrays with a batch axis in, arrays with a batch axis out.
        batch_ms: for every size of `batch_sizes(max)`, how long a batch of it runs, as measured at warm-up;
            kept up to date while running.
        max_wait_ms: how long the first entry waits for company, counted from its arrival.
        queue_capacity: entries that may wait; those in the running batch do not count.
    """

    def __init__(
        self, name: str, run: Run, batch_ms: Mapping[int, float], *, max_wait_ms: float, queue_capacity: int
    ) -> None:
        self._run_engine = run
        self._batch_ms = dict(sorted(batch_ms.items()))
        self._max_batch_size = max(self._batch_ms)
        self._max_wait_s = max_wait_ms / 1000
        self._queue_capacity = queue_capacity
        self._waiting: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._busy_until = 0.0  # when the running batch should be done; 0: none runs
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"batcher-{name}", daemon=True)
        self._thread.start()

    @property
    def batch_ms(self) -> dict[int, float]:
        """Batch size -> measured milliseconds."""
        return dict(self._batch_ms)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, rows: Sequence[Row], deadline: float | None = None) -> list[Future[Result]]:
        """Queue all rows, or none of them. `deadline` is a time of `time.monotonic()`.

        Raises:
            QueueFull: there is no room for all of them.
            DeadlineMissed: by the measured curve they would not be done in time, after what is ahead of them.
            Closed: after `close`.
        """
        with self._changed:
            now = time.monotonic()
            if self._closing:
                raise Closed("the batcher is closed")
            if len(self._waiting) + len(rows) > self._queue_capacity:
                raise QueueFull(self._seconds_until_done(now, 0))
            # When idle it runs anyway: a curve that one hiccup spoilt would else refuse for ever, unmeasured.
            idle = not self._waiting and not self._busy_until
            finished = now + self._seconds_until_done(now, len(rows))
            if deadline is not None and not idle and finished > deadline:
                raise DeadlineMissed(self._seconds_until_done(now, 0))
            entries = [_Entry(row, deadline, now) for row in rows]
            self._waiting.extend(entries)
            self._changed.notify_all()
        for entry in entries:
            entry.future.add_done_callback(self._forget_if_cancelled)
        return [entry.future for entry in entries]

    def close(self, timeout_s: float | None = None) -> bool:
        """Take no more entries, run those that wait, and end; what is left after `timeout_s` is refused.

        Returns:
            Whether it has ended; if not, a batch is still running.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        with self._changed:
            left = [entry for entry in self._waiting if entry.future.set_running_or_notify_cancel()]
            self._waiting.clear()
        for entry in left:
            entry.future.set_exception(Closed("the server stopped before this entry's turn"))
        return not self._thread.is_alive()

    def _forget_if_cancelled(self, future: Future[Result]) -> None:
        """A client that leaves frees its place in the queue at once.

        The entry is looked for: a callback that held it would be held by its future, and neither would go
        until the cycle collector runs, with all its results.
        """
        if future.cancelled():
            with self._changed:
                for entry in self._waiting:
                    if entry.future is future:
                        self._waiting.remove(entry)
                        break

    def _seconds_until_done(self, now: float, num_more: int) -> float:
        """When the running batch, all that wait, and `num_more` entries should be done."""
        full, rest = divmod(len(self._waiting) + num_more, self._max_batch_size)
        ms = full * self._batch_ms[self._max_batch_size]
        if rest:
            ms += self._batch_ms[self._padded_size(rest)]
        return max(0.0, self._busy_until - now) + ms / 1000

    def _padded_size(self, num_entries: int) -> int:
        return next(size for size in self._batch_ms if size >= num_entries)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._run_batch(batch)

    def _next_batch(self) -> list[_Entry] | None:
        """Wait for ever for the first entry, then until full or until that one has waited long enough.

        An entry whose client has gone or whose deadline has passed is left out, so the batch may be empty;
        None means that the batcher is closed and the queue empty.
        """
        with self._changed:
            while (pause := self._seconds_to_wait()) is None or pause > 0:
                if self._closing and not self._waiting:
                    return None
                self._changed.wait(pause)
            now = time.monotonic()
            batch: list[_Entry] = []
            while self._waiting and len(batch) < self._max_batch_size:
                entry = self._waiting.popleft()
                if not entry.future.set_running_or_notify_cancel():
                    continue
                if entry.deadline is not None and now > entry.deadline:
                    entry.future.set_exception(DeadlineMissed(self._seconds_until_done(now, 0)))
                else:
                    batch.append(entry)
            if batch:
                self._busy_until = now + self._batch_ms[self._padded_size(len(batch))] / 1000
            return batch

    def _seconds_to_wait(self) -> float | None:
        """Until the next batch may form; None: until something arrives."""
        if not self._waiting:
            return None
        if self._closing or len(self._waiting) >= self._max_batch_size:
            return 0.0
        return self._waiting[0].queued + self._max_wait_s - time.monotonic()

    def _run_batch(self, batch: list[_Entry]) -> None:
        size = self._padded_size(len(batch))
        started = time.monotonic()
        try:
            outputs = self._run_engine(_stack([entry.row for entry in batch], size))
            rows = [{name: array[i] for name, array in outputs.items()} for i in range(len(batch))]
        except Exception as error:  # whatever an engine raises, it fails these entries and nothing else
            with self._changed:
                self._busy_until = 0.0
            for entry in batch:
                failure = BatchFailed(f"{type(error).__name__}: {error}")
                failure.__cause__ = error
                entry.future.set_exception(failure)
            return
        inference_ms = (time.monotonic() - started) * 1000
        with self._changed:
            self._busy_until = 0.0
            self._batch_ms[size] += SMOOTHING * (inference_ms - self._batch_ms[size])
        for entry, row in zip(batch, rows, strict=True):
            entry.future.set_result(Result(row, (started - entry.queued) * 1000, inference_ms))


def _stack(rows: Sequence[Row], size: int) -> dict[str, NDArray[Any]]:
    """Rows -> arrays of `size` rows, zeros after the given ones."""
    stacked = {}
    for name, first in rows[0].items():
        stacked[name] = np.zeros((size, *first.shape), first.dtype)
        for i, row in enumerate(rows):
            stacked[name][i] = row[name]
    return stacked
