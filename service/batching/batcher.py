"""Entries -> batches -> engine -> futures.

An entry is one row for the graph: a dict of named arrays without the batch axis. It waits in a bounded queue
until a thread of the device's scheduler takes it into a batch, runs that, and gives every entry its own row
of the outputs. It knows no HTTP and no framework: it is threads and `concurrent.futures`, and tested without
a server.

Why nothing can be handed to the wrong caller, or harm its batch: a future is claimed with
`set_running_or_notify_cancel` when the batch forms. Before that it can be cancelled, and is left out;
after that it cannot, so `set_result` never meets a cancelled future.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import ceil
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.preprocess import Row
from service.batching.scheduler import Job, Scheduler
from service.batching.sizes import sizes_for
from service.batching.types import (
    BatchFailed,
    BatchObserver,
    Closed,
    DeadlineMissed,
    Paused,
    QueueFull,
    Result,
    Runner,
)

# Cores that slow down while an entry waits must not make all that was admitted late.
RESERVE = 1.2
SMOOTHING = 0.2  # weight of the newest batch in the pace


@dataclass(eq=False)
class _Entry:
    row: Row
    deadline: float | None
    queued: float
    runner: Runner | None = None  # the only one that may run it, alone; None: any, with others
    future: Future[Result] = field(default_factory=Future)


@dataclass(eq=False)
class _Batch:
    entries: list[_Entry]
    runner: Runner
    size: int
    settled: bool = False  # it ended, or was given up: what it may still return is nobody's


class Batcher:
    """One queue in front of one graph, whose batches a scheduler runs.

    Args:
        runners: the last one runs batches. The first one, if it is another, takes the whole device for an
            entry that comes alone.
        max_wait_ms: how long the first entry waits for company, counted from its arrival.
        queue_capacity: entries that may wait or be on their way; those in running batches do not count.
        priority: of the graphs on one device the lowest number goes first.
        max_batch_ms: larger batches than that are not formed, unless the smallest takes longer too.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        scheduler: Scheduler,
        *,
        max_wait_ms: float,
        queue_capacity: int,
        priority: int = 0,
        max_batch_ms: float = float("inf"),
        observer: BatchObserver | None = None,
    ) -> None:
        self.priority = priority
        self._scheduler = scheduler
        self._changed = scheduler.changed
        self._max_wait_s = max_wait_ms / 1000
        self._queue_capacity = queue_capacity
        self._max_batch_ms = max_batch_ms
        self._observer = observer
        self._waiting: deque[_Entry] = deque()
        self._num_expected = 0  # admitted, but not yet submitted
        self._num_running = 0  # batches
        self._paused = False
        self._closing = False
        self._gave_up = False
        self._use(runners)
        scheduler.add(self)

    @property
    def batch_ms(self) -> dict[int, float]:
        """Batch size -> milliseconds at load, at today's pace."""
        return {size: ms * self._pace for size, ms in self._at_load.batch_ms.items()}

    @property
    def queue_capacity(self) -> int:
        return self._queue_capacity

    @property
    def largest_batch(self) -> int:
        """Rows of the largest batch that it forms."""
        return self._size_for[-1]

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def longest_batch_ms(self) -> float:
        """What the largest batch that it forms took when it was warmed."""
        return self._at_load.batch_ms[self._size_for[-1]]

    @property
    def gave_up(self) -> bool:
        """Whether a batch hangs in one of its runners, for all that is known."""
        return self._gave_up

    def admit(self, num_rows: int, deadline: float | None = None, ready_in_s: float = 0.0) -> Admission:
        """Keep room for rows that come when they are decoded, in `ready_in_s`.

        Args:
            deadline: a time of `time.monotonic()`.

        Raises:
            QueueFull: there is no room for all of them.
            DeadlineMissed: by the measured curve they would not be done in time, after what is ahead of them.
            Paused: its engine is being built anew.
            Closed: after `close`.
        """
        with self._changed:
            self.check_room(num_rows, deadline, ready_in_s)
            self._num_expected += num_rows
        return Admission(self, num_rows, deadline)

    def check_room(self, num_rows: int, deadline: float | None = None, ready_in_s: float = 0.0) -> None:
        """Raise what `admit` would raise, and keep nothing."""
        with self._changed:
            now = time.monotonic()
            if self._closing:
                raise Closed("the batcher is closed")
            if self._paused:
                raise Paused("the engine is being built anew")
            ahead = len(self._waiting) + self._num_expected
            if ahead + num_rows > self._queue_capacity:
                raise QueueFull(self._seconds_until_free(now))
            # When idle it runs anyway: a curve that one hiccup spoilt would else refuse for ever, unmeasured.
            free_in_s = self._seconds_until_free(now)
            if deadline is None or not (ahead or self._num_running or free_in_s):
                return
            done_in_s = max(free_in_s, ready_in_s) + self._seconds_for(num_rows)
            if now + RESERVE * done_in_s > deadline:
                raise DeadlineMissed(free_in_s)

    def check_time(self, num_rows: int, deadline: float) -> None:
        """Raise DeadlineMissed if so many rows, however they are portioned, cannot be done in time.

        For more rows than the queue holds. A pace slower than when it was warmed does not count, as it heals
        only by what runs; `admit` of each portion minds it.
        """
        with self._changed:
            now = time.monotonic()
            free_in_s = self._seconds_until_free(now)
            if now + free_in_s + self._seconds_for(num_rows) / max(1.0, self._pace) > deadline:
                raise DeadlineMissed(free_in_s)

    def submit(self, rows: Sequence[Row], deadline: float | None = None) -> list[Future[Result]]:
        """Admit and queue all rows, or none of them; raises what `admit` does."""
        with self.admit(len(rows), deadline) as admission:
            return admission.submit(rows)

    def probe(self, row: Row) -> list[Future[Result]]:
        """The row by itself through each of the runners, before all that waits, even if the queue is full.

        Raises:
            Paused: its engine is being built anew.
            Closed: after `close`.
        """
        with self._changed:
            if self._closing:
                raise Closed("the batcher is closed")
            if self._paused:
                raise Paused("the engine is being built anew")
            entries = [_Entry(row, None, time.monotonic(), runner) for runner in self._runners]
            self._waiting.extendleft(entries)
            self._tell()
        return [entry.future for entry in entries]

    def pause(self) -> None:
        """Start no more batches until `resume`; what waits goes on waiting, but for probes."""
        with self._changed:
            self._paused = True
            for entry in [entry for entry in self._waiting if entry.runner is not None]:
                entry.future.cancel()
                self._waiting.remove(entry)
            self._tell()

    def resume(self, runners: Sequence[Runner]) -> None:
        """Go on, with these runners."""
        with self._changed:
            self._use(runners)
            self._paused = False
            self._tell()

    def wait_until_idle(self, timeout_s: float | None = None) -> bool:
        """Whether, within that time, none of its batches is running."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_running, timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """Take no more entries, run those that wait, and end; what is left after `timeout_s` is refused.

        Returns:
            Whether it has ended; if not, a batch is still running.
        """
        with self._changed:
            if not self._closing:
                self._closing = True
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: not self._num_running and (self._paused or not self._waiting), timeout_s
                )
                self._scheduler.remove(self)
            left = [entry for entry in self._waiting if entry.future.set_running_or_notify_cancel()]
            self._waiting.clear()
            self._tell()
            ended = not self._num_running
        for entry in left:
            entry.future.set_exception(Closed("the server stopped before this entry's turn"))
        return ended

    # --- what the scheduler asks, with the lock held

    def waiting_since(self) -> float | None:
        all_busy = self._num_running >= self._at_load.instances
        return self._waiting[0].queued if self._waiting and not self._paused and not all_busy else None

    def seconds_to_wait(self, now: float) -> float:
        """Until the next batch is full, or its first entry has waited long enough."""
        first = self._waiting[0]
        if self._closing or first.runner is not None or len(self._waiting) >= self._size_for[-1]:
            return 0.0
        return first.queued + self._max_wait_s - now

    def slots_wanted(self, free: int, total: int) -> int:
        return max(1, total // self._next_runner(free, total).instances)

    def backlog_s(self) -> float:
        return (len(self._waiting) + self._num_expected) * self._seconds_an_image()

    def next_job(self, now: float, free: int, total: int) -> Job | None:
        """A batch of what waits longest; where several instances are idle, they share what waits.

        An entry whose client has gone, or that can no longer be done in time, is left out.
        """
        runner = self._next_runner(free, total)
        slots = self.slots_wanted(free, total)
        share = ceil(len(self._waiting) / min(runner.instances, max(1, free // slots)))
        size = self._size_for[min(share, len(self._size_for) - 1)] if runner is self._at_load else 1
        soonest = now + runner.batch_ms[1] * min(1.0, self._pace) / 1000
        entries: list[_Entry] = []
        while self._waiting and len(entries) < min(size, share):
            if self._waiting[0].runner not in (None, runner) or (entries and entries[0].runner is not None):
                break  # a probe runs alone
            entry = self._waiting.popleft()
            if not entry.future.set_running_or_notify_cancel():
                continue
            # The last one runs although it will be late, or a curve that one hiccup spoilt would never heal.
            latest = soonest if self._waiting or entries else now
            if entry.deadline is not None and latest > entry.deadline:
                entry.future.set_exception(DeadlineMissed(self._seconds_until_free(now)))
            else:
                entries.append(entry)
        self._tell()
        if not entries:
            return None
        size = next(size for size in runner.batch_ms if size >= len(entries))
        batch = _Batch(entries, runner, size)
        self._num_running += 1
        ms = runner.batch_ms[size] * self._pace
        return Job(self, slots, now + ms / 1000, lambda: self._run(batch), lambda: self._lose(batch))

    # --- inside

    def _use(self, runners: Sequence[Runner]) -> None:
        self._runners = tuple(runners)
        self._gave_up = False
        self._at_load = runners[-1]
        self._size_for = sizes_for(self._at_load.batch_ms, self._max_batch_ms)
        # How much longer batches take than when they were warmed. One number for all sizes and runners: what
        # runs tells of what does not, so that no size is held for slow because of one hiccup long ago.
        self._pace = 1.0

    def _tell(self) -> None:
        """What waits has changed; called with the lock held."""
        if self._observer is not None:
            self._observer.queue_changed(len(self._waiting))
        self._changed.notify_all()

    def _next_runner(self, free: int, total: int) -> Runner:
        """What a probe asks for; the whole device for an entry that comes alone; else the one at load."""
        alone = len(self._waiting) == 1 and free == total
        return self._waiting[0].runner or (self._runners[0] if alone else self._at_load)

    def _seconds_until_free(self, now: float) -> float:
        return self._scheduler.seconds_until_free(now, self.priority)

    def _seconds_an_image(self) -> float:
        """At load, when all instances run full batches."""
        size = self._size_for[-1]
        return self._ms_at_load(size) / (1000 * size * self._at_load.instances)

    def _ms_at_load(self, size: int) -> float:
        return self._at_load.batch_ms[size] * self._pace

    def _seconds_for(self, num_rows: int) -> float:
        size = self._size_for[min(num_rows, len(self._size_for) - 1)]
        return max(self._ms_at_load(size) / 1000, num_rows * self._seconds_an_image())

    def _queue(self, entries: Sequence[_Entry]) -> None:
        with self._changed:
            self._num_expected -= len(entries)
            if self._closing:
                raise Closed("the batcher is closed")
            self._waiting.extend(entries)
            self._tell()
        for entry in entries:
            entry.future.add_done_callback(self._forget_if_cancelled)

    def _expect_less(self, num_rows: int) -> None:
        with self._changed:
            self._num_expected -= num_rows

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
                        self._tell()
                        break

    def _run(self, batch: _Batch) -> None:
        started = time.monotonic()
        try:
            outputs = batch.runner.run(_stack([entry.row for entry in batch.entries], batch.size))
            rows = [{name: array[i] for name, array in outputs.items()} for i in range(len(batch.entries))]
        except Exception as error:  # whatever an engine raises, it fails these entries and nothing else
            self._fail(batch, error, time.monotonic() - started)
            return
        seconds = time.monotonic() - started
        with self._changed:
            if not self._settle(batch):
                return
            self._note_pace(seconds * 1000 / batch.runner.batch_ms[batch.size])
        queue_s = [started - entry.queued for entry in batch.entries]
        for entry, row, waited_s in zip(batch.entries, rows, queue_s, strict=True):
            entry.future.set_result(Result(row, waited_s * 1000, seconds * 1000, len(batch.entries)))
        if self._observer is not None and batch.entries[0].runner is None:  # a probe is nobody's request
            self._observer.batch_done(len(batch.entries), batch.size, queue_s, seconds)

    def _note_pace(self, pace: float) -> None:
        """Follow it by its logarithm: a hiccup of fifty times counts twofold, and is forgotten soon."""
        self._pace *= (max(pace, 1e-6) / self._pace) ** SMOOTHING

    def _fail(self, batch: _Batch, error: Exception, seconds: float) -> None:
        with self._changed:
            if not self._settle(batch):
                return
        if self._observer is not None:
            self._observer.batch_failed(len(batch.entries), seconds)
        for entry in batch.entries:
            failure = BatchFailed(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            entry.future.set_exception(failure)

    def _settle(self, batch: _Batch) -> bool:
        """Whether it is the caller that may answer the batch's entries; the lock is held."""
        if batch.settled:
            return False
        batch.settled = True
        self._num_running -= 1
        return True

    def _lose(self, batch: _Batch) -> None:
        """Fail the entries of a batch that hangs; the lock is held."""
        if not self._settle(batch):
            return
        self._gave_up = True
        if self._observer is not None:
            self._observer.batch_failed(len(batch.entries), 0.0)
        for entry in batch.entries:
            entry.future.set_exception(BatchFailed("the batch hangs and was given up"))


class Admission:
    """Room for some rows in a batcher's queue, given back at the end of `with` unless they were submitted."""

    def __init__(self, batcher: Batcher, num_rows: int, deadline: float | None) -> None:
        self._batcher = batcher
        self._num_rows = num_rows
        self._deadline = deadline
        self._open = True

    def submit(self, rows: Sequence[Row]) -> list[Future[Result]]:
        """Queue as many rows as were admitted; raises Closed."""
        assert self._open
        assert len(rows) == self._num_rows
        self._open = False
        now = time.monotonic()
        entries = [_Entry(row, self._deadline, now) for row in rows]
        self._batcher._queue(entries)
        return [entry.future for entry in entries]

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._open = False
            self._batcher._expect_less(self._num_rows)


def _stack(rows: Sequence[Row], size: int) -> dict[str, NDArray[Any]]:
    """Rows -> arrays of `size` rows, zeros after the given ones."""
    stacked = {}
    for name, first in rows[0].items():
        stacked[name] = np.zeros((size, *first.shape), first.dtype)
        for i, row in enumerate(rows):
            stacked[name][i] = row[name]
    return stacked
