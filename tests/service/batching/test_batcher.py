"""Batches form as they should, every caller gets its own row, and no caller can harm another."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.engine import batch_sizes
from service.batching.batcher import Batcher
from service.batching.scheduler import Scheduler
from service.batching.types import (
    BatchFailed,
    Closed,
    DeadlineMissed,
    Paused,
    QueueFull,
    Result,
    Runner,
    State,
)

Arrays = Mapping[str, NDArray[Any]]


class Doubler:
    """An engine that doubles x, notes the batches it saw, and can be held and made to fail."""

    def __init__(self) -> None:
        self.batches: list[NDArray[Any]] = []
        self.started = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        self.batches.append(inputs["x"])
        self.started.set()
        assert self.go_on.wait(60)
        if (inputs["x"] < 0).any():
            raise RuntimeError("negative")
        return {"y": inputs["x"] * 2, "x": inputs["x"]}


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.done: list[tuple[int, int, int]] = []
        self.failed: list[int] = []

    def queue_changed(self, num_waiting: int) -> None:
        self.waiting.append(num_waiting)

    def batch_done(
        self, num_entries: int, padded_size: int, queue_s: Sequence[float], inference_s: float
    ) -> None:
        self.done.append((num_entries, padded_size, len(queue_s)))

    def batch_failed(self, num_entries: int, inference_s: float) -> None:
        self.failed.append(num_entries)


@pytest.fixture
def engine() -> Doubler:
    return Doubler()


@pytest.fixture
def batcher(engine: Doubler) -> Iterator[Batcher]:
    made = make(engine)
    yield made
    engine.go_on.set()
    made.close()


def make(
    engine: Doubler,
    *,
    max_batch_size: int = 4,
    max_wait_ms: float = 0,
    queue_capacity: int = 8,
    ms: float = 1,
    observer: Notes | None = None,
) -> Batcher:
    curve = dict.fromkeys(batch_sizes(max_batch_size), ms)
    return Batcher(
        [Runner(engine.run, curve)],
        Scheduler("test", 1),
        max_wait_ms=max_wait_ms,
        queue_capacity=queue_capacity,
        observer=observer,
    )


def row(value: float) -> Arrays:
    return {"x": np.array([value], np.float32)}


def value_of(future: Future[Result]) -> float:
    return float(future.result(timeout=60).outputs["y"][0])


def test_an_entry_waits_for_rows_that_are_on_their_way(engine: Doubler) -> None:
    batcher = make(engine, ms=100_000)
    with batcher.admit(1) as coming:
        first = batcher.submit([row(1)])[0]
        assert not engine.started.wait(0.05)
        second = coming.submit([row(2)])[0]
        assert [value_of(first), value_of(second)] == [2, 4]
    assert [list(batch.ravel()) for batch in engine.batches] == [[1, 2]]
    with batcher.admit(1):
        third = batcher.submit([row(3)])[0]
    assert value_of(third) == 6  # as soon as nothing is on its way any more
    batcher.close()


def test_no_entry_waits_for_others_until_it_is_late(engine: Doubler) -> None:
    batcher = make(engine, ms=400, max_wait_ms=3_600_000)
    with batcher.admit(1):  # whose row does not come
        [future] = batcher.submit([row(1)], time.monotonic() + 2)
        assert value_of(future) == 2
    batcher.close()


def hold(engine: Doubler, batcher: Batcher) -> Future[Result]:
    """Occupy the engine with one entry, so that what comes next has to wait."""
    engine.go_on.clear()
    engine.started.clear()
    [future] = batcher.submit([row(100)])
    assert engine.started.wait(60)
    return future


def test_each_entry_gets_its_own_row_and_timings(batcher: Batcher) -> None:
    futures = batcher.submit([row(value) for value in range(6)])
    assert [value_of(future) for future in futures] == [0, 2, 4, 6, 8, 10]
    result = futures[0].result()
    assert result.queue_ms >= 0
    assert result.inference_ms >= 0


def test_what_waits_runs_together_padded_to_a_warmed_size(engine: Doubler, batcher: Batcher) -> None:
    held = hold(engine, batcher)
    futures = batcher.submit([row(1)]) + batcher.submit([row(2)]) + batcher.submit([row(3)])
    engine.go_on.set()
    assert [value_of(future) for future in [held, *futures]] == [200, 2, 4, 6]
    assert [len(batch) for batch in engine.batches] == [1, 4]
    assert engine.batches[1].ravel().tolist() == [1, 2, 3, 0]


def test_a_full_batch_does_not_wait(engine: Doubler) -> None:
    batcher = make(engine, max_wait_ms=3_600_000)
    futures = batcher.submit([row(1), row(2), row(3)])
    futures += batcher.submit([row(4)])
    assert [value_of(future) for future in futures] == [2, 4, 6, 8]
    assert len(engine.batches) == 1
    batcher.close()


def test_the_wait_for_company_ends(engine: Doubler) -> None:
    batcher = make(engine, max_wait_ms=1)
    [future] = batcher.submit([row(1)])
    assert value_of(future) == 2
    batcher.close()


def test_a_failure_fails_its_batch_only(engine: Doubler, batcher: Batcher) -> None:
    held = hold(engine, batcher)
    bad = batcher.submit([row(-1), row(1), row(2), row(3)])
    good = batcher.submit([row(4)])
    engine.go_on.set()
    for future in bad:
        with pytest.raises(BatchFailed, match="RuntimeError: negative"):
            future.result(timeout=60)
    assert value_of(held) == 200
    assert value_of(good[0]) == 8


def test_a_cancelled_entry_frees_its_place_and_stays_out_of_the_batch(engine: Doubler) -> None:
    batcher = make(engine, queue_capacity=2)
    held = hold(engine, batcher)
    gone, stays = batcher.submit([row(1), row(2)])
    assert gone.cancel()
    assert batcher.num_waiting == 1
    [third] = batcher.submit([row(3)])
    engine.go_on.set()
    assert [value_of(future) for future in (held, stays, third)] == [200, 4, 6]
    assert engine.batches[1].ravel().tolist() == [2, 3]
    with pytest.raises(CancelledError):
        gone.result()
    batcher.close()


def test_an_entry_that_runs_can_no_longer_be_cancelled(engine: Doubler, batcher: Batcher) -> None:
    held = hold(engine, batcher)
    assert not held.cancel()
    engine.go_on.set()
    assert value_of(held) == 200


def test_all_rows_are_accepted_or_none(engine: Doubler) -> None:
    batcher = make(engine, queue_capacity=3, ms=2_500)
    held = hold(engine, batcher)
    kept = batcher.submit([row(1), row(2)])
    with pytest.raises(QueueFull) as refused:
        batcher.submit([row(3), row(4)])
    assert batcher.num_waiting == 2
    # The running batch and one more, of 2.5 s each by the curve.
    assert 2.5 < refused.value.retry_after_s <= 5
    engine.go_on.set()
    assert [value_of(future) for future in [held, *kept]] == [200, 2, 4]
    batcher.close()


def test_a_deadline_that_the_curve_cannot_meet_is_refused_at_once(engine: Doubler) -> None:
    batcher = make(engine, ms=60_000)
    held = hold(engine, batcher)
    with pytest.raises(DeadlineMissed) as refused:
        batcher.submit([row(1)], deadline=time.monotonic() + 90)
    assert 0 < refused.value.retry_after_s <= 60
    with pytest.raises(DeadlineMissed):  # 120 s and a fifth
        batcher.submit([row(1)], deadline=time.monotonic() + 140)
    assert batcher.num_waiting == 0
    [future] = batcher.submit([row(1)], deadline=time.monotonic() + 150)
    engine.go_on.set()
    assert [value_of(held), value_of(future)] == [200, 2]
    batcher.close()


def test_a_spoilt_curve_does_not_refuse_for_ever(engine: Doubler) -> None:
    batcher = make(engine, ms=3_600_000)
    [future] = batcher.submit([row(1)], deadline=time.monotonic() + 60)
    assert value_of(future) == 2
    assert batcher.batch_ms[1] < 3_600_000
    batcher.close()


def test_more_rows_than_the_queue_holds_are_refused_if_they_take_too_long(engine: Doubler) -> None:
    """Also when it is idle; but not because it was slow lately."""
    batcher = make(engine, max_batch_size=2, queue_capacity=4, ms=10_000)
    with pytest.raises(DeadlineMissed):
        batcher.check_time(100, time.monotonic() + 480)
    batcher.check_time(100, time.monotonic() + 520)
    batcher.close()
    fast = make(engine, ms=1e-6)  # than which every batch is slower
    fast.submit([row(1)])[0].result(timeout=60)
    assert fast.wait_until_idle(60)
    assert fast.batch_ms[1] > 2e-6
    fast.check_time(1_000_000, time.monotonic() + 60)
    assert fast.largest_batch == 4
    fast.close()


def test_an_entry_whose_deadline_has_passed_does_not_run(engine: Doubler, batcher: Batcher) -> None:
    held = hold(engine, batcher)
    deadline = time.monotonic() + 0.1
    [late] = batcher.submit([row(1)], deadline)
    [other] = batcher.submit([row(2)])
    while time.monotonic() <= deadline:
        pass
    engine.go_on.set()
    with pytest.raises(DeadlineMissed):
        late.result(timeout=60)
    assert [value_of(held), value_of(other)] == [200, 4]
    assert [len(batch) for batch in engine.batches] == [1, 1]


def test_close_runs_what_waits_and_takes_no_more(engine: Doubler) -> None:
    batcher = make(engine)
    held = hold(engine, batcher)
    waiting = batcher.submit([row(1)])
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while True:  # until the closer has come that far
        try:
            waiting += batcher.submit([row(1)])[:0]
        except (Closed, QueueFull) as error:
            if isinstance(error, Closed):
                break
    engine.go_on.set()
    closer.join(60)
    assert [value_of(held), value_of(waiting[0])] == [200, 2]


def test_close_refuses_what_does_not_finish_in_time(engine: Doubler) -> None:
    batcher = make(engine)
    held = hold(engine, batcher)
    [waiting] = batcher.submit([row(1)])
    batcher.close(timeout_s=0)
    with pytest.raises(Closed):
        waiting.result(timeout=60)
    engine.go_on.set()
    assert value_of(held) == 200


def test_the_curve_follows_what_is_measured(engine: Doubler) -> None:
    batcher = make(engine, ms=1_000)
    for _ in range(20):
        value_of(batcher.submit([row(1)])[0])
    assert batcher.batch_ms[1] < 100
    assert batcher.batch_ms[4] == batcher.batch_ms[1]  # what runs tells of what does not
    batcher.close()


def test_nobody_gets_anothers_row_under_random_cancels_and_errors(engine: Doubler) -> None:
    batcher = make(engine, max_batch_size=8, max_wait_ms=0.5, queue_capacity=10_000)

    def client(seed: int) -> int:
        rng = random.Random(seed)
        answered = 0
        for request in range(60):
            values = [seed * 1_000 + request + i / 8 for i in range(rng.randint(1, 3))]
            if rng.random() < 0.05:
                values[0] = -1.0
            futures = batcher.submit([row(value) for value in values])
            if rng.random() < 0.3:
                rng.choice(futures).cancel()
            for value, future in zip(values, futures, strict=True):
                try:
                    assert value_of(future) == 2 * value
                    answered += 1
                except (CancelledError, BatchFailed):
                    pass
        return answered

    with ThreadPoolExecutor(8) as clients:
        assert sum(clients.map(client, range(1, 9))) > 300
    assert batcher.num_waiting == 0
    batcher.close()


def test_what_was_answered_is_freed_at_once(batcher: Batcher) -> None:
    """Not when the cycle collector gets to it: an introspection's maps are large."""
    gc.disable()
    try:
        [future] = batcher.submit([row(1)])
        assert value_of(future) == 2
        answered = weakref.ref(future)
        del future
        [following] = batcher.submit([row(2)])  # until then the batcher's thread holds its last batch
        assert value_of(following) == 4
        assert answered() is None
    finally:
        gc.enable()


# --- room is kept from admission on


def test_admission_keeps_room_until_the_rows_come(engine: Doubler) -> None:
    batcher = make(engine, queue_capacity=2)
    with batcher.admit(2) as admission:
        with pytest.raises(QueueFull):
            batcher.submit([row(9)])
        futures = admission.submit([row(1), row(2)])
    assert [value_of(future) for future in futures] == [2, 4]
    batcher.close()


def test_room_that_was_not_used_is_given_back(engine: Doubler) -> None:
    batcher = make(engine, queue_capacity=2)
    with pytest.raises(ValueError, match="undecodable"), batcher.admit(2):
        raise ValueError("undecodable")
    assert [value_of(future) for future in batcher.submit([row(1), row(2)])] == [2, 4]
    batcher.close()


def test_rows_that_are_decoded_too_late_are_refused(engine: Doubler, batcher: Batcher) -> None:
    held = hold(engine, batcher)
    deadline = time.monotonic() + 60
    batcher.check_room(1, deadline, ready_in_s=1)
    with pytest.raises(DeadlineMissed):
        batcher.check_room(1, deadline, ready_in_s=90)
    engine.go_on.set()
    assert value_of(held) == 200


# --- several runners


class TwoRunners:
    """A device of two slots: a wide runner for what comes alone, a narrow one with two instances for load."""

    def __init__(self) -> None:
        self.alone, self.at_load = Doubler(), Doubler()
        self.scheduler = Scheduler("test", 2)
        self.batcher = Batcher(
            [Runner(self.alone.run, {1: 1.0}), Runner(self.at_load.run, {1: 1.0, 2: 1.0, 4: 1.0}, 2)],
            self.scheduler,
            max_wait_ms=0,
            queue_capacity=100,
        )

    def close(self) -> None:
        for engine in (self.alone, self.at_load):
            engine.go_on.set()
        self.batcher.close()
        self.scheduler.close()


@pytest.fixture
def two() -> Iterator[TwoRunners]:
    made = TwoRunners()
    yield made
    made.close()


def test_an_entry_that_comes_alone_gets_the_whole_device(two: TwoRunners) -> None:
    assert value_of(two.batcher.submit([row(1)])[0]) == 2
    assert [len(two.alone.batches), len(two.at_load.batches)] == [1, 0]


def test_idle_instances_share_what_waits(two: TwoRunners) -> None:
    two.alone.go_on.clear()
    two.at_load.go_on.clear()
    [first] = two.batcher.submit([row(1)])
    assert two.alone.started.wait(60)
    waiting = two.batcher.submit([row(value) for value in range(4)])
    two.alone.go_on.set()
    assert value_of(first) == 2
    with two.scheduler.changed:  # both instances run, two entries each
        assert two.scheduler.changed.wait_for(lambda: len(two.at_load.batches) == 2, 60)
    assert sorted(len(batch) for batch in two.at_load.batches) == [2, 2]
    two.at_load.go_on.set()
    assert [value_of(future) for future in waiting] == [0, 2, 4, 6]


def test_a_probe_goes_through_every_runner_by_itself_and_is_nobodys_batch(engine: Doubler) -> None:
    notes = Notes()
    batcher = make(engine, queue_capacity=1, observer=notes)
    held = hold(engine, batcher)
    [waiting] = batcher.submit([row(1)])  # the queue is full
    [probe] = batcher.probe(row(7))
    engine.go_on.set()
    assert [value_of(future) for future in (held, probe, waiting)] == [200, 14, 2]
    assert [batch.ravel().tolist() for batch in engine.batches] == [[100], [7], [1]]
    batcher.close()
    assert notes.done == [(1, 1, 1), (1, 1, 1)]


def test_probes_ask_each_runner(two: TwoRunners) -> None:
    assert [value_of(future) for future in two.batcher.probe(row(3))] == [6, 6]
    assert [len(two.alone.batches), len(two.at_load.batches)] == [1, 1]


# --- an engine that is rebuilt


def test_what_waits_while_paused_is_run_by_the_new_engine(engine: Doubler, batcher: Batcher) -> None:
    held = hold(engine, batcher)
    [waiting] = batcher.submit([row(1)])
    [probe] = batcher.probe(row(1))
    batcher.pause()
    assert probe.cancelled()
    with pytest.raises(Paused):
        batcher.submit([row(2)])
    engine.go_on.set()
    assert value_of(held) == 200
    assert batcher.wait_until_idle(60)
    replacement = Doubler()
    batcher.resume([Runner(replacement.run, {1: 1.0})])
    assert value_of(waiting) == 2
    assert [len(engine.batches), len(replacement.batches)] == [1, 1]


def test_closing_while_paused_refuses_what_waits(engine: Doubler, batcher: Batcher) -> None:
    held = hold(engine, batcher)
    [waiting] = batcher.submit([row(1)])
    batcher.pause()
    engine.go_on.set()
    assert value_of(held) == 200
    assert batcher.close(60)
    with pytest.raises(Closed):
        waiting.result(timeout=60)


def test_a_batch_that_is_given_up_fails_and_its_late_answer_is_nobodys(engine: Doubler) -> None:
    notes, scheduler = Notes(), Scheduler("test", 1)
    batcher = Batcher(
        [Runner(engine.run, {1: 1.0})], scheduler, max_wait_ms=0, queue_capacity=8, observer=notes
    )
    hung = hold(engine, batcher)
    [job] = scheduler.running()
    assert job.source is batcher
    scheduler.abandon(job)
    with pytest.raises(BatchFailed, match="given up"):
        hung.result(timeout=60)
    batcher.resume([Runner(Doubler().run, {1: 1.0})])
    assert value_of(batcher.submit([row(1)])[0]) == 2  # the device serves on
    engine.go_on.set()  # now the hung one comes back
    batcher.close()
    scheduler.close(60)
    assert notes.failed == [1]
    assert notes.done == [(1, 1, 1)]
    assert notes.waiting[-1] == 0


def test_no_probe_is_taken_while_paused(engine: Doubler, batcher: Batcher) -> None:
    batcher.pause()
    with pytest.raises(Paused):
        batcher.probe(row(1))


def test_the_gauge_knows_of_probes_that_are_dropped(engine: Doubler) -> None:
    notes = Notes()
    batcher = make(engine, observer=notes)
    held = hold(engine, batcher)
    batcher.probe(row(1))
    batcher.pause()
    assert notes.waiting[-1] == 0
    engine.go_on.set()
    assert value_of(held) == 200
    batcher.close()


def test_no_more_batches_run_than_there_are_instances() -> None:
    """Three slots, two instances: the third batch waits here, where its time counts as queueing."""
    engine, scheduler = Doubler(), Scheduler("test", 3)
    batcher = Batcher([Runner(engine.run, {1: 1.0}, 2)], scheduler, max_wait_ms=0, queue_capacity=8)
    engine.go_on.clear()
    futures = batcher.submit([row(1), row(2), row(3)])
    with scheduler.changed:
        assert scheduler.changed.wait_for(lambda: len(engine.batches) == 2, 60)
    assert batcher.num_waiting == 1
    engine.go_on.set()
    assert [value_of(future) for future in futures] == [2, 4, 6]
    batcher.close()
    scheduler.close()


def test_what_runs_of_another_graph_counts_for_the_deadline(engine: Doubler) -> None:
    scheduler = Scheduler("test", 1)
    mine, other = (
        Batcher([Runner(engine.run, {1: ms})], scheduler, max_wait_ms=0, queue_capacity=8)
        for ms in (1.0, 100_000.0)
    )
    held = hold(engine, other)
    with pytest.raises(DeadlineMissed):
        mine.submit([row(1)], deadline=time.monotonic() + 60)
    [late] = mine.submit([row(1)], deadline=time.monotonic() + 200)
    engine.go_on.set()
    assert [value_of(held), value_of(late)] == [200, 2]
    for batcher in (mine, other):
        batcher.close()
    scheduler.close()


def test_an_observer_that_fails_loses_no_answer_and_no_slot(
    engine: Doubler, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Notes):
        def batch_done(
            self, num_entries: int, padded_size: int, queue_s: Sequence[float], inference_s: float
        ) -> None:
            raise OSError("disk full")

    batcher = make(engine, observer=Broken())
    assert [value_of(batcher.submit([row(value)])[0]) for value in (1, 2)] == [2, 4]
    batcher.close()
    assert "disk full" in caplog.text


# --- the states of a batcher


def test_states_from_serving_to_closed(engine: Doubler) -> None:
    batcher = make(engine)
    seen = [batcher.state]
    for step in (batcher.pause, lambda: batcher.resume([Runner(engine.run, {1: 1.0})]), batcher.close):
        step()
        seen.append(batcher.state)
    assert seen == [State.SERVING, State.PAUSED, State.SERVING, State.CLOSED]
    batcher.pause()
    with pytest.raises(Closed):
        batcher.resume([Runner(engine.run, {1: 1.0})])
    assert batcher.state is State.CLOSED


def test_an_engine_that_breaks_while_closing_ends_the_wait_for_what_waits(engine: Doubler) -> None:
    batcher = make(engine)
    held = hold(engine, batcher)
    [waiting] = batcher.submit([row(1)])
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while batcher.state is not State.CLOSING:
        pass
    batcher.pause()
    assert batcher.state is State.CLOSED
    engine.go_on.set()
    closer.join(60)
    assert value_of(held) == 200
    with pytest.raises(Closed):
        waiting.result(timeout=60)
