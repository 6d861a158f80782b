"""The scheduler of a device: threads that take jobs from several sources, the most urgent first.

A device has slots: a CPU has one for each thread that may compute at once, a GPU one for each batch that
may overlap with others. A job is one batch of one graph; it takes some slots, and no slot is given out twice.
Two graphs that share a CPU therefore take turns instead of slowing each other down, and a source of low
priority can delay another one by no more than the batch that it has begun.

The scheduler knows no batches and no engines: a job is a function. A job that never returns can be abandoned:
its slots are given to others, and its thread ends if it ever returns.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from engines.machine import go_behind_the_loop, name_this_thread

logger = logging.getLogger("residuum")

# Jobs in a row that may overtake what waits at lower priority. Then one job of the lowest priority has its
# turn, which would otherwise starve.
MAX_OVERTAKEN = 16


@dataclass(eq=False)
class Job:
    """Work that takes `slots` of a device until about `until`; times are those of `time.monotonic()`."""

    source: JobSource
    slots: int
    until: float
    run: Callable[[], None]
    abandon: Callable[[], None]  # called with the scheduler's lock held
    started: float = field(default_factory=time.monotonic)
    abandoned: bool = False


class JobSource(Protocol):
    """Something that has jobs, such as a batcher; its methods are called with the scheduler's lock held."""

    @property
    def priority(self) -> int:
        """The lowest number goes first."""
        ...

    def waiting_since(self) -> float | None:
        """Return when what waits longest arrived, or None if nothing can start now."""
        ...

    def seconds_to_wait(self, now: float) -> float:
        """Return the seconds until the next job may start; something waits."""
        ...

    def slots_wanted(self, free: int, total: int) -> int:
        """Return how many slots the next job needs when `free` of `total` are free."""
        ...

    def next_job(self, now: float, free: int, total: int) -> Job | None:
        """Return the next job, or None if everything that waited has gone."""
        ...

    def backlog_s(self) -> float:
        """Return the seconds for which everything that waits here should occupy the whole device."""
        ...


class Scheduler:
    """`slots` threads, and the sources whose jobs they run.

    `changed` is the lock of the scheduler and of all its sources. It is notified when a job ends; `wake`
    tells a thread that there may be a job.
    """

    def __init__(self, name: str, slots: int) -> None:
        self.slots = slots
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self._idle = threading.Condition(lock)  # the threads that wait for a job
        self._name = name
        self._free = slots
        self._sources: list[JobSource] = []
        self._overtaking = 0  # jobs in a row that began while a source of lower priority waited
        self._running: list[Job] = []
        self._closing = False
        self._threads: list[threading.Thread] = []
        for _ in range(slots):
            self._start_thread()

    def add(self, source: JobSource) -> None:
        with self.changed:
            self._sources.append(source)

    def remove(self, source: JobSource) -> None:
        """Take no more jobs from a source; a job that runs goes on."""
        with self.changed:
            self._sources.remove(source)

    def wake(self) -> None:
        """Let an idle thread look for a job, unless no slot is free; called with the lock held.

        One thread is enough: with a job in hand it wakes the next one.
        """
        if self._free:
            self._idle.notify()

    def seconds_until_free(self, now: float, priority: float = inf) -> float:
        """Return the seconds until running jobs, and waiting ones of up to that priority, should be done."""
        with self.changed:
            running = sum(max(0.0, job.until - now) * job.slots / self.slots for job in self._running)
            return running + sum(s.backlog_s() for s in self._sources if s.priority <= priority)

    def running(self) -> list[Job]:
        """Return the jobs that are running now."""
        with self.changed:
            return [*self._running]

    def abandon(self, job: Job) -> None:
        """Give a hung job's slots to others; what the job still returns is discarded."""
        with self.changed:
            if job in self._running:
                job.abandoned = True
                self._finish(job)
                job.abandon()
                self._start_thread()

    def close(self, timeout_s: float | None = None) -> None:
        """End the threads; a job that still runs after `timeout_s` is left alone."""
        with self.changed:
            self._closing = True
            self._idle.notify_all()
        end = None if timeout_s is None else time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))

    def _start_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"run-{self._name}", daemon=True)
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        thread.start()

    def _work(self) -> None:
        name_this_thread(f"run-{self._name}")
        go_behind_the_loop()
        while (job := self._wait_for_job()) is not None:
            try:
                job.run()
            except Exception:  # this thread and its slots must go on
                logger.exception("A job of %s failed", self._name)
            with self.changed:
                if job.abandoned:
                    return  # another thread took this one's place
                self._finish(job)
            del job  # while idle, this thread would keep the answers, and with them an engine's memory

    def _finish(self, job: Job) -> None:
        self._running.remove(job)
        self._free += job.slots
        self.changed.notify_all()

    def _wait_for_job(self) -> Job | None:
        with self.changed:
            while not self._closing:
                job, pause = self._next_job(time.monotonic())
                if job is not None:
                    self._free -= job.slots
                    self._running.append(job)
                    if any(source.waiting_since() is not None for source in self._sources):
                        self.wake()
                    return job
                self._idle.wait(pause)
            return None

    def _next_job(self, now: float) -> tuple[Job | None, float | None]:
        """Return the most urgent job that is due, or how long to wait; None: until something changes.

        If the most urgent job needs more slots than are free, no other job gets the free ones: otherwise a
        wide job would wait for ever behind narrow ones.
        """
        pause: float | None = None
        for source in self._by_urgency():
            to_wait = source.seconds_to_wait(now)
            if to_wait > 0:
                pause = to_wait if pause is None else min(pause, to_wait)
                continue
            if source.slots_wanted(self._free, self.slots) > self._free:
                return None, pause
            job = source.next_job(now, self._free, self.slots)
            if job is not None:
                self._count_overtaken(source)
                return job, None
        return None, pause

    def _by_urgency(self) -> list[JobSource]:
        """Return the sources in which something waits: by priority, then the longest waiting.

        After MAX_OVERTAKEN jobs the lowest priority goes first, for one job only: several sources that were
        overtaken must not delay another one by a batch each.
        """
        sign = -1 if self._overtaking >= MAX_OVERTAKEN else 1
        waiting = [
            (since, source) for source in self._sources if (since := source.waiting_since()) is not None
        ]
        waiting.sort(key=lambda item: (sign * item[1].priority, item[0]))
        return [source for _, source in waiting]

    def _count_overtaken(self, chosen: JobSource) -> None:
        overtakes = any(s.priority > chosen.priority and s.waiting_since() is not None for s in self._sources)
        self._overtaking = self._overtaking + 1 if overtakes else 0
