"""Entries -> batches -> engine -> futures.

An entry is one row for the graph: a dict of named arrays without the batch axis. It waits in a bounded queue
until a thread of the device's scheduler takes it into a batch, runs the batch, and gives every entry its own
row of the outputs. A batcher knows no HTTP and no models: it is threads and `concurrent.futures`.

    SERVING --pause--> PAUSED --resume--> SERVING      the engine is broken, and rebuilt
    SERVING --close--> CLOSING -> CLOSED               what waits is run first
    PAUSED --close--> CLOSED, CLOSING --pause--> CLOSED    what waits is refused
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from math import ceil

from artifact.preprocess import Row
from service.batching.admission import Admission
from service.batching.entries import Batch, Entry, Waiting
from service.batching.forecast import Forecast
from service.batching.runners import Runners
from service.batching.scheduler import Job, Scheduler
from service.batching.types import (
    CLOSE,
    PAUSE,
    RUNS,
    BatchObserver,
    Closed,
    DeadlineMissed,
    Paused,
    QueueFull,
    Result,
    Runner,
    State,
)


class Batcher:
    """One queue in front of one graph, whose batches a scheduler runs.

    Args:
        runners, max_batch_ms: see Runners.
        max_wait_ms: how long the first entry waits for others while cores are idle, from its arrival on.
        queue_capacity: entries that may wait or be on their way; those in running batches do not count.
            0: any number that can be done in time.
        priority: the graph with the lowest number goes first on a device.
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
        self.queue_capacity = queue_capacity
        self._scheduler = scheduler
        self._changed = scheduler.changed
        self._max_wait_s = max_wait_ms / 1000
        self._max_batch_ms = max_batch_ms
        self._observer = observer
        self._state = State.SERVING
        self.forecast = Forecast()
        self._waiting = Waiting()
        self._num_expected = 0  # admitted, but not yet submitted
        self._num_running = 0  # batches
        self._runners = Runners(runners, max_batch_ms)
        scheduler.add(self)

    @property
    def state(self) -> State:
        return self._state

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def batch_ms(self) -> dict[int, float]:
        """Milliseconds at load by batch size, corrected for the current pace."""
        return self._runners.batch_ms

    @property
    def largest_batch(self) -> int:
        """The size of the largest batch that is formed."""
        return self._runners.largest_batch

    @property
    def longest_batch_ms(self) -> float:
        """Milliseconds of the largest batch, as measured when it was warmed up."""
        return self._runners.at_load.batch_ms[self._runners.largest_batch]

    @property
    def hangs(self) -> bool:
        """Whether a batch was abandoned in one of the runners; that runner may stay in use for ever."""
        return self._runners.hang

    # --- for requests

    def admit(self, num_rows: int, deadline: float | None = None, ready_in_s: float = 0.0) -> Admission:
        """Keep room for rows that come in `ready_in_s`; `deadline` is a time of `time.monotonic()`.

        Raises:
            QueueFull: there is no room for all of the rows.
            DeadlineMissed: by the measured times the rows would be late, after what is ahead of them.
            Paused: the engine is being rebuilt.
            Closed: after `close`.
        """
        with self._changed:
            expected_s = self.check_room(num_rows, deadline, ready_in_s)
            self._num_expected += num_rows
        return Admission(num_rows, deadline, self._queue, self._expect_less, expected_s)

    def check_room(self, num_rows: int, deadline: float | None = None, ready_in_s: float = 0.0) -> float:
        """Return the seconds after which the rows should be done; raise what `admit` would raise."""
        with self._changed:
            now = time.monotonic()
            self._check_serving()
            ahead = len(self._waiting) + self._num_expected
            free_in_s = self._seconds_until_free(now)
            if 0 < self.queue_capacity < ahead + num_rows:
                raise QueueFull(free_in_s)
            done_in_s = max(free_in_s, ready_in_s) + self._runners.seconds_for(num_rows)
            # An idle batcher takes the rows anyway: only what runs heals times that one hiccup spoilt.
            is_idle = not (ahead or self._num_running or free_in_s)
            late = deadline is not None and now + self.forecast.at_most_s(done_in_s) > deadline
            if late and not is_idle:
                raise DeadlineMissed(free_in_s)
            return done_in_s

    def check_time(self, num_rows: int, deadline: float) -> None:
        """Raise DeadlineMissed if that many rows, in portions of any size, cannot be done in time.

        A pace slower than at warm-up does not count here, as it heals only by what runs; `admit` counts it.
        """
        with self._changed:
            now = time.monotonic()
            free_in_s = self._seconds_until_free(now)
            if now + free_in_s + self._runners.seconds_for(num_rows, most_pace=1.0) > deadline:
                raise DeadlineMissed(free_in_s)

    def submit(self, rows: Sequence[Row], deadline: float | None = None) -> list[Future[Result]]:
        """Admit and queue all rows, or none of them; raise what `admit` raises."""
        with self.admit(len(rows), deadline) as admission:
            return admission.submit(rows)

    # --- for checking, rebuilding and closing the engines

    def probe(self, row: Row) -> list[Future[Result]]:
        """Run a row by itself in each of the runners, before all that waits, even if the queue is full.

        Raises:
            Paused: the engine is being rebuilt.
            Closed: after `close`.
        """
        with self._changed:
            self._check_serving()
            entries = [Entry(row, None, time.monotonic(), runner) for runner in self._runners.all]
            self._waiting.extendleft(entries)
            self._tell()
        return [entry.future for entry in entries]

    def pause(self) -> None:
        """Start no batch until `resume`; entries go on waiting, probes are cancelled."""
        with self._changed:
            self._state = PAUSE.get(self._state, self._state)
            self._waiting.cancel_probes()
            self._tell()

    def resume(self, runners: Sequence[Runner]) -> None:
        """Go on with these runners; raise Closed after `close`."""
        with self._changed:
            if self._state in (State.CLOSING, State.CLOSED):
                raise Closed("the batcher is closed")
            self._state = State.SERVING
            self._runners = Runners(runners, self._max_batch_ms)
            self._tell()

    def wait_until_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until no batch is running; return False if one still is after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._num_running, timeout_s)

    def close(self, timeout_s: float | None = None) -> bool:
        """Take no more entries, run those that wait, and end; refuse what still waits after `timeout_s`.

        Return whether no batch is running any more.
        """
        with self._changed:
            if self._state in CLOSE:
                self._state = CLOSE[self._state]
                self._tell()
                self._changed.wait_for(
                    lambda: not self._num_running and (self._state is State.CLOSED or not self._waiting),
                    timeout_s,
                )
                self._state = State.CLOSED
                self._scheduler.remove(self)
            left = self._waiting.take_all()
            self._tell()
            ended = not self._num_running
        for entry in left:
            entry.future.set_exception(Closed("the server stopped before this entry's turn"))
        return ended

    # --- what the scheduler asks, with the lock held

    def waiting_since(self) -> float | None:
        all_busy = self._num_running >= self._runners.at_load.instances
        return self._waiting[0].queued if self._waiting and self._state in RUNS and not all_busy else None

    def seconds_to_wait(self, now: float) -> float:
        """Return the seconds until the next batch is full, or its first entry can wait no longer.

        While all cores decode rows that will come, waiting for some of them saves processor time.
        """
        first, num_waiting = self._waiting[0], len(self._waiting)
        if num_waiting >= self.largest_batch or first.runner is not None or self._state is State.CLOSING:
            return 0.0
        cores_decode = self._num_expected >= self._scheduler.slots
        company_s = self._runners.company_s(self._num_expected) if cores_decode else 0.0
        until = first.queued + max(self._max_wait_s, company_s)
        if first.deadline is not None:
            until = min(until, first.deadline - self._runners.seconds_in_haste(num_waiting))
        return until - now

    def slots_wanted(self, free: int, total: int) -> int:
        return max(1, total // self._next_runner(free, total).instances)

    def backlog_s(self) -> float:
        return (len(self._waiting) + self._num_expected) * self._runners.seconds_an_image()

    def next_job(self, now: float, free: int, total: int) -> Job | None:
        """Return a job for a batch of what waits longest, or None if nothing is left to run.

        Instances that are idle share what waits. An entry is left out if its client has left, or if it can no
        longer be done in time.
        """
        runners, runner = self._runners, self._next_runner(free, total)
        slots = self.slots_wanted(free, total)
        share = ceil(len(self._waiting) / min(runner.instances, max(1, free // slots)))
        most = runners.size_for[min(share, runners.largest_batch)] if runner is runners.at_load else 1
        soonest = now + runners.least_seconds(runner)
        entries = self._waiting.take(
            runner, min(most, share), now, soonest, lambda: DeadlineMissed(self._seconds_until_free(now))
        )
        self._tell()
        if not entries:
            return None
        size = next(size for size in runner.batch_ms if size >= len(entries))
        batch = Batch(entries, size, runner, runners)
        self._num_running += 1
        until = now + runners.ms(runner, size) / 1000
        return Job(self, slots, until, lambda: self._run(batch), lambda: self._abandon(batch))

    # --- inside

    def _check_serving(self) -> None:
        if self._state is State.PAUSED:
            raise Paused("the engine is being rebuilt")
        if self._state is not State.SERVING:
            raise Closed("the batcher is closed")

    def _tell(self) -> None:
        """Tell the observer, the scheduler and `close` what waits now; called with the lock held."""
        if self._observer is not None:
            self._observer.queue_changed(len(self._waiting))
        self._changed.notify_all()
        if self._waiting:
            self._scheduler.wake()

    def _next_runner(self, free: int, total: int) -> Runner:
        """Return a probe's own runner, the one for an entry that comes alone, or the one at load."""
        alone = len(self._waiting) == 1 and not self._num_expected and free == total
        return self._waiting[0].runner or (self._runners.alone if alone else self._runners.at_load)

    def _seconds_until_free(self, now: float) -> float:
        return self._scheduler.seconds_until_free(now, self.priority)

    def _queue(self, entries: Sequence[Entry]) -> None:
        with self._changed:
            self._num_expected -= len(entries)
            if self._state in (State.CLOSING, State.CLOSED):
                raise Closed("the batcher is closed")
            self._waiting.extend(entries)
            self._tell()
        for entry in entries:
            entry.future.add_done_callback(self._forget_if_cancelled)

    def _expect_less(self, num_rows: int) -> None:
        with self._changed:
            self._num_expected -= num_rows
            self._scheduler.wake()  # what waits may have waited for these rows

    def _forget_if_cancelled(self, future: Future[Result]) -> None:
        """Free the place of a client that leaves. A callback that held the entry would be a cycle."""
        if future.cancelled():
            with self._changed:
                self._waiting.forget(future)
                self._tell()

    # --- on a thread of the scheduler

    def _run(self, batch: Batch) -> None:
        started = time.monotonic()
        try:
            rows = batch.run()
        except Exception as error:  # whatever an engine raises, it fails these entries and nothing else
            self._fail(batch, f"{type(error).__name__}: {error}", time.monotonic() - started, error)
            return
        seconds = time.monotonic() - started
        with self._changed:
            if not self._settle(batch):
                return
            batch.runners.note(batch.runner, batch.size, seconds)
        queue_s = [started - entry.queued for entry in batch.entries]
        try:  # first, so that whoever has an answer finds it counted
            if self._observer is not None and not batch.is_probe:
                self._observer.batch_done(len(batch.entries), batch.size, queue_s, seconds)
        finally:
            batch.answer(rows, queue_s, seconds)

    def _fail(self, batch: Batch, why: str, seconds: float, cause: Exception | None = None) -> None:
        with self._changed:
            if not self._settle(batch):
                return
        if self._observer is not None:
            self._observer.batch_failed(len(batch.entries), seconds)
        batch.fail(why, cause)

    def _abandon(self, batch: Batch) -> None:
        """Fail the entries of a batch that hangs; called with the lock held."""
        if not batch.settled:
            batch.runners.hang = True
            self._fail(batch, "the batch hangs and was given up", 0.0)

    def _settle(self, batch: Batch) -> bool:
        """Return whether the caller is the one to answer the batch; called with the lock held."""
        if batch.settled:
            return False
        batch.settled = True
        self._num_running -= 1
        return True
