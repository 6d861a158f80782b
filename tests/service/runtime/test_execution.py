"""Clients that leave, deadlines that pass and queues that are full, where batches meet HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from service.batching.batcher import Batcher
from service.batching.scheduler import Scheduler
from service.batching.types import BatchFailed, Closed, DeadlineMissed, Paused, QueueFull, Runner
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.http.waiting import while_client_waits
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedModel
from service.settings import Settings
from service.telemetry.metrics import Metrics


def request_with(receive: Callable[[], Awaitable[Message]]) -> Request:
    app = FastAPI()
    execution = SimpleNamespace(seconds_until_free=lambda: 7.0)
    app.state.serving = SimpleNamespace(metrics=Metrics(), execution=execution)
    return Request({"type": "http", "method": "POST", "path": "/", "headers": [], "app": app}, receive)


async def stays() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def leaves() -> Message:
    return {"type": "http.disconnect"}


class Gate:
    """An engine that waits until it may go on."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go_on = threading.Event()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.started.set()
        assert self.go_on.wait(60)
        if (inputs["x"] < 0).any():
            raise RuntimeError("negative")
        return dict(inputs)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def batcher(gate: Gate) -> Iterator[Batcher]:
    made = Batcher([Runner(gate.run, {1: 1.0})], Scheduler("test", 1), max_wait_ms=0, queue_capacity=2)
    yield made
    gate.go_on.set()
    made.close()


@pytest.fixture
def serving() -> Iterator[Serving]:
    made = Serving(Settings(timeout_ms=60_000))
    yield made
    made.close(1)


@pytest.fixture
def model(batcher: Batcher) -> LoadedModel:
    """One whose classify graph is the gate."""
    graph = SimpleNamespace(batcher=batcher, meter=Metrics().graph("test", "classify"))
    return cast(LoadedModel, SimpleNamespace(name="test", graphs={"classify": graph}))


def row(value: float) -> dict[str, NDArray[Any]]:
    return {"x": np.array([value])}


def soon() -> float:
    return time.monotonic() + 60


def test_the_result_while_the_client_waits() -> None:
    async def work() -> int:
        return 7

    assert asyncio.run(while_client_waits(request_with(stays), soon(), work())) == 7


def test_an_error_of_the_work_is_the_error() -> None:
    async def work() -> int:
        raise Overloaded("Full.")

    with pytest.raises(Overloaded):
        asyncio.run(while_client_waits(request_with(stays), soon(), work()))


@pytest.mark.parametrize(
    ("receive", "seconds", "error"), [(leaves, 60, ClientDisconnect), (stays, 0, DeadlineExceeded)]
)
def test_work_that_nobody_waits_for_is_cancelled(
    receive: Callable[[], Awaitable[Message]], seconds: float, error: type[Exception]
) -> None:
    cancelled = False

    async def work() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(error):
        asyncio.run(while_client_waits(request_with(receive), time.monotonic() + seconds, work()))
    assert cancelled


def test_a_client_that_leaves_frees_its_places(
    serving: Serving, model: LoadedModel, batcher: Batcher, gate: Gate
) -> None:
    batcher.submit([row(0)])
    assert gate.started.wait(60)

    async def submit_and_leave() -> None:
        gone = asyncio.Event()

        async def leaves_later() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        work = serving.execution.run_rows(model, "classify", [row(1), row(2)], soon())
        request = asyncio.create_task(while_client_waits(request_with(leaves_later), soon(), work))
        while batcher.num_waiting < 2:
            await asyncio.sleep(0)
        gone.set()
        with pytest.raises(ClientDisconnect):
            await request

    asyncio.run(submit_and_leave())
    assert batcher.num_waiting == 0


def test_results_come_in_order(serving: Serving, model: LoadedModel, gate: Gate) -> None:
    gate.go_on.set()
    results = asyncio.run(serving.execution.run_rows(model, "classify", [row(3), row(4)], soon()))
    assert [float(result.outputs["x"][0]) for result in results] == [3, 4]


def test_of_what_comes_out_only_the_logits_are_kept(serving: Serving) -> None:
    """The arrays of a batch are gone while later ones still run."""
    gone: list[threading.Event] = []
    in_time: list[bool] = []

    def run(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if len(gone) >= 3:
            in_time.append(gone[-3].wait(10))
        maps = np.zeros((len(inputs["x"]), 1000))
        gone.append(threading.Event())
        weakref.finalize(maps, gone[-1].set)
        return {"logits": inputs["x"] * 2, "maps": maps}

    batcher = Batcher([Runner(run, {1: 1.0})], Scheduler("test", 1), max_wait_ms=0, queue_capacity=5)
    graph = SimpleNamespace(batcher=batcher)
    model = cast(LoadedModel, SimpleNamespace(name="test", graphs={"introspect": graph}))
    rows = [row(value) for value in range(5)]
    logits = asyncio.run(serving.execution.run_logits(model, "introspect", rows, soon()))
    batcher.close()
    assert [float(one[0]) for one in logits] == [0, 2, 4, 6, 8]
    assert all(one.base is None for one in logits)
    assert in_time == [True, True]


def test_rows_that_cannot_be_done_in_time_are_refused_at_once(serving: Serving) -> None:
    batcher = Batcher([Runner(dict, {1: 10_000.0})], Scheduler("test", 1), max_wait_ms=0, queue_capacity=2)
    graph = SimpleNamespace(batcher=batcher)
    model = cast(LoadedModel, SimpleNamespace(name="test", graphs={"introspect": graph}))
    serving.execution.check_time(model, "introspect", 5, soon())
    with pytest.raises(DeadlineMissed):
        serving.execution.check_time(model, "introspect", 7, soon())
    batcher.close()


def test_the_batchers_errors_come_through(
    serving: Serving, model: LoadedModel, batcher: Batcher, gate: Gate
) -> None:
    batcher.submit([row(0)])
    assert gate.started.wait(60)
    with pytest.raises(QueueFull):
        asyncio.run(serving.execution.run_rows(model, "classify", [row(1)] * 3, soon()))
    with pytest.raises(DeadlineMissed):
        asyncio.run(serving.execution.run_rows(model, "classify", [row(1)], time.monotonic()))
    gate.go_on.set()
    with pytest.raises(BatchFailed):
        asyncio.run(serving.execution.run_rows(model, "classify", [row(-1)], soon()))
    batcher.pause()
    with pytest.raises(Paused):
        asyncio.run(serving.execution.run_rows(model, "classify", [row(1)], soon()))
    batcher.close()
    with pytest.raises(Closed):
        asyncio.run(serving.execution.run_rows(model, "classify", [row(1)], soon()))


def test_a_client_can_only_shorten_the_deadline(serving: Serving) -> None:
    now = time.monotonic()
    assert 59 < serving.execution.deadline(None) - now < 90
    assert 59 < serving.execution.deadline(1_000_000) - now < 90
    assert serving.execution.deadline(1) - now < 30


def test_loading_that_fails_is_said(tmp_path: Any) -> None:
    told: list[Serving] = []
    serving = Serving(Settings(model=("nix",), artifacts=tmp_path), told.append)
    asyncio.run(serving.load())
    assert told == [serving]
    assert serving.state == "failed"
    with pytest.raises(NotReady, match="not ready: failed: --model nix"):
        serving.models.get(None)
    serving.close(1)
