"""The most urgent job runs first, slots are never given out twice, and nobody starves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from service.batching.scheduler import MAX_OVERTAKEN, Job, Scheduler


class Jobs:
    """A source whose jobs note their names; `gate` holds them while they run."""

    def __init__(
        self, scheduler: Scheduler, notes: list[str], name: str, priority: int = 0, slots: int = 1
    ) -> None:
        self.priority = priority
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self.abandoned = 0
        self._scheduler, self._notes, self._name, self._slots = scheduler, notes, name, slots
        self._waiting: list[float] = []
        scheduler.add(self)

    def put(self, count: int = 1) -> None:
        with self._scheduler.changed:
            self._waiting += [time.monotonic()] * count
            self._scheduler.wake()

    def waiting_since(self) -> float | None:
        return self._waiting[0] if self._waiting else None

    def seconds_to_wait(self, now: float) -> float:
        return 0.0

    def slots_wanted(self, free: int, total: int) -> int:
        return self._slots

    def backlog_s(self) -> float:
        return float(len(self._waiting))

    def next_job(self, now: float, free: int, total: int) -> Job | None:
        assert free >= self._slots
        self._waiting.pop(0)
        self._notes.append(self._name)
        return Job(self, self._slots, now + 1, self._run, self._abandon)

    def _run(self) -> None:
        self.started.release()
        assert self.gate.wait(60)

    def _abandon(self) -> None:
        self.abandoned += 1


Make = Callable[[int], Scheduler]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Scheduler] = []

    def scheduler(slots: int) -> Scheduler:
        made.append(Scheduler("test", slots))
        return made[-1]

    yield scheduler
    for each in made:
        each.close(60)


def wait_for(scheduler: Scheduler, notes: list[str], count: int) -> None:
    with scheduler.changed:
        assert scheduler.changed.wait_for(lambda: len(notes) >= count, 60)


def test_the_urgent_ones_go_first(make: Make, notes: list[str]) -> None:
    scheduler = make(1)
    low = Jobs(scheduler, notes, "low", priority=1)
    high = Jobs(scheduler, notes, "high")
    low.put()
    assert low.started.acquire(timeout=60)
    low.put(2)
    high.put(2)
    low.gate.set()
    high.gate.set()
    wait_for(scheduler, notes, 5)
    assert notes == ["low", "high", "high", "low", "low"]  # delayed by the one that had begun, and no more


def test_nobody_starves(make: Make, notes: list[str]) -> None:
    scheduler = make(1)
    high = Jobs(scheduler, notes, "high")
    low = Jobs(scheduler, notes, "low", priority=1)
    high.put()
    assert high.started.acquire(timeout=60)
    low.put(2)
    low.gate.set()
    high.put(3 * MAX_OVERTAKEN)
    high.gate.set()
    wait_for(scheduler, notes, 3 * MAX_OVERTAKEN + 3)
    assert notes[: MAX_OVERTAKEN + 2].count("low") == 1
    assert notes[: 2 * MAX_OVERTAKEN + 3].count("low") == 2


def test_jobs_overlap_as_far_as_there_are_slots(make: Make, notes: list[str]) -> None:
    scheduler = make(3)
    narrow = Jobs(scheduler, notes, "narrow")
    wide = Jobs(scheduler, notes, "wide", slots=3)
    narrow.put(2)
    for _ in range(2):
        assert narrow.started.acquire(timeout=60)
    wide.put()
    narrow.put()  # there is a slot for it, but the wide one came first and would wait for ever
    wide.gate.set()
    narrow.gate.set()
    wait_for(scheduler, notes, 4)
    assert notes == ["narrow", "narrow", "wide", "narrow"]


def test_what_is_ahead_of_a_newcomer_counts_by_its_priority(make: Make, notes: list[str]) -> None:
    scheduler = make(2)
    high = Jobs(scheduler, notes, "high")
    low = Jobs(scheduler, notes, "low", priority=1)
    high.put()
    assert high.started.acquire(timeout=60)  # half of the device for another second
    with scheduler.changed:
        low._waiting += [0.0] * 5
        now = time.monotonic()
        assert scheduler.seconds_until_free(now, 0) <= 0.5
        assert 5 <= scheduler.seconds_until_free(now, 1) <= 5.5
        low._waiting.clear()
    high.gate.set()


def test_a_hung_job_is_given_up_and_its_slots_are_used_by_others(make: Make, notes: list[str]) -> None:
    scheduler = make(1)
    hung = Jobs(scheduler, notes, "hung")
    other = Jobs(scheduler, notes, "other")
    hung.put()
    assert hung.started.acquire(timeout=60)
    [job] = scheduler.running()
    scheduler.abandon(job)
    scheduler.abandon(job)  # only once
    assert hung.abandoned == 1
    other.gate.set()
    other.put()
    wait_for(scheduler, notes, 2)
    threads = list(scheduler._threads)
    hung.gate.set()
    other.put()
    wait_for(scheduler, notes, 3)
    assert notes == ["hung", "other", "other"]
    scheduler.close(60)
    assert not any(thread.is_alive() for thread in threads)
    assert scheduler._free == 1  # what came back late had nothing to give back


def test_a_job_that_raises_gives_its_slots_back(
    make: Make, notes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = make(1)
    broken = Jobs(scheduler, notes, "broken")
    broken.gate.wait = lambda timeout: False  # type: ignore[method-assign, assignment]
    broken.put(2)
    wait_for(scheduler, notes, 2)
    scheduler.close(60)
    assert scheduler._free == 1
    assert "A job of test failed" in caplog.text


def test_close_does_not_wait_for_what_hangs(make: Make, notes: list[str]) -> None:
    scheduler = Scheduler("test", 1)
    hung = Jobs(scheduler, notes, "hung")
    hung.put()
    assert hung.started.acquire(timeout=60)
    scheduler.close(timeout_s=0)
    hung.gate.set()
    scheduler.close(60)
