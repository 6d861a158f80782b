"""benchmarks.budget_*: clocks around stages, the budget that they give, and one short run of the server."""

from __future__ import annotations

import asyncio
import gc
import shutil
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from artifact.store import EMBEDDED
from benchmarks.budget_clock import COLLECTION, StageClock, StageGone, threads_of_process
from benchmarks.budget_server import DECODE, ENGINE, RESIZE, STAGES
from benchmarks.http_budget import LOOP, NATIVE, OTHER, budget_of, measure_budget, print_budget, refusal_ms
from benchmarks.http_subject import photographs, subject

MODULE = "module_of_a_test"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, found)
    return found


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A thread's clock that goes on only by what `work` says."""

    class Ticks:
        now_ns = 0

        def work(self, ms: float) -> None:
            self.now_ns += int(ms * 1e6)

    clock = Ticks()
    monkeypatch.setattr("benchmarks.budget_clock.time.thread_time_ns", lambda: clock.now_ns)
    return clock


def mine(clock: StageClock) -> dict[str, float]:
    """Return the stages of this thread."""
    threads = {thread["id"]: thread["stages_ms"] for thread in clock.snapshot()["threads"]}
    return threads[threading.get_native_id()]


def test_a_stage_does_not_count_what_belongs_to_another(module: Any, ticks: Any) -> None:
    module.inner = lambda: ticks.work(5)

    def outer() -> str:
        ticks.work(1)
        module.inner()
        ticks.work(2)
        return "done"

    module.outer = outer
    clock = StageClock()
    clock.wrap("app", f"{MODULE}:outer")
    clock.wrap("decode", f"{MODULE}:inner")
    ticks.work(100)  # nobody's
    assert module.outer() == "done"
    assert mine(clock) == {"app": 3, "decode": 5}
    assert clock.calls == {f"{MODULE}:outer": 1, f"{MODULE}:inner": 1}


def test_an_error_ends_a_stage(module: Any, ticks: Any) -> None:
    def fails(self: object) -> None:
        ticks.work(1)
        raise ValueError("no")

    module.Class = type("Class", (), {"fails": fails})
    clock = StageClock()
    clock.wrap("app", f"{MODULE}:Class.fails")
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            module.Class().fails()
        ticks.work(10)
    assert mine(clock) == {"app": 2}


def test_of_a_coroutine_only_its_own_steps_count(module: Any, ticks: Any) -> None:
    async def answer(waiter: asyncio.Future[int]) -> int:
        ticks.work(1)
        found = await waiter
        ticks.work(2)
        return found

    async def give_up() -> None:
        await asyncio.Future()

    async def main() -> None:
        waiter = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(module.answer(waiter))
        await asyncio.sleep(0)
        ticks.work(50)  # another task's
        waiter.set_result(7)
        assert await task == 7
        assert await module.answer(waiter) == 7
        left = asyncio.create_task(module.give_up())
        await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left

    module.answer, module.give_up = answer, give_up
    clock = StageClock()
    clock.wrap("app", f"{MODULE}:answer")
    clock.wrap("app", f"{MODULE}:give_up")
    asyncio.run(main())
    assert mine(clock) == {"app": 6}


def test_the_collector_is_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "callbacks", [])
    clock = StageClock()
    clock.watch_collector()
    monkeypatch.setattr(gc, "callbacks", list(gc.callbacks))
    for callback in gc.callbacks:
        callback("start", {})
        callback("stop", {})
    assert set(mine(clock)) == {COLLECTION}


@pytest.mark.parametrize("place", ["no.such.module:f", f"{MODULE}:gone", f"{MODULE}:Class.gone"])
def test_a_function_that_is_gone_is_an_error(module: Any, place: str) -> None:
    module.Class = type("Class", (), {})
    with pytest.raises(StageGone, match=place):
        StageClock().wrap("app", place)


def test_the_kernel_knows_every_thread() -> None:
    threads = {number: (comm, cpu_ms) for number, comm, cpu_ms in threads_of_process()}
    assert threads[threading.get_native_id()][1] > 0
    assert time.process_time() * 1000 >= max(cpu_ms for _, cpu_ms in threads.values()) - 100


def counts(process_ms: float, calls: int, *threads: tuple[int, str | None, float, dict[str, float]]) -> Any:
    return {
        "process_ms": process_ms,
        "cost_ms": 0.5,
        "calls": {"a:f": calls, "a:never": 3, "a:Pool._work": 1},
        "threads": [
            {"id": number, "name": name, "cpu_ms": cpu_ms, "stages_ms": stages}
            for number, name, cpu_ms, stages in threads
        ],
    }


def test_a_budget_is_the_difference_of_two_counts(capsys: pytest.CaptureFixture[str]) -> None:
    before = counts(1000, 10, (1, "MainThread", 500, {"answer": 50}), (2, None, 100, {}))
    after = counts(
        1400, 30,
        (1, "MainThread", 600, {"answer": 70, DECODE: 10}),
        (2, None, 150, {}),
        (3, "decode", 200, {DECODE: 120, RESIZE: 40, ENGINE: 20}),
    )  # fmt: skip
    found = budget_of(before, after, 10)
    stages = {stage: spent_ms for stage, spent_ms in found["stages_ms"].items() if spent_ms}
    assert stages == {"answer": 2, DECODE: 13, RESIZE: 4, ENGINE: 2, LOOP: 7, NATIVE: 5, OTHER: 2}
    assert (found["total_ms"], found["ended_ms"]) == (40, 5)
    assert (found["clocks_ms"], found["calls_a_request"]) == (1, 2)
    assert found["beside_ms"] == 40 - 1 - (13 + 4 + 2 + 5)
    assert found["never_called"] == ["a:never"]
    print_budget({**found, "refusal_ms": 0.0421, "refused": 12})
    out = capsys.readouterr().out
    assert "answer                                   2.000    5.0%" in out
    assert "renamed: a:never" in out
    assert "a refusal takes 0.042 ms (12 of them at 3" in out


def test_a_refusal_takes_what_answers_do_not() -> None:
    each = {
        "total_ms": 4.0,
        "clocks_ms": 0.1,
        "stages_ms": {"admission": 0.5, DECODE: 2.0, ENGINE: 1.0, NATIVE: 0.1},
    }
    whole = {"total_ms": 45.0, "clocks_ms": 1.0, "stages_ms": {"admission": 9.0, DECODE: 20.0, ENGINE: 11.0}}
    assert refusal_ms(each, whole, 10, 50) == pytest.approx((45 - 1 - 31 - 10 * (4 - 0.1 - 3.1)) / 50)
    assert refusal_ms(each, whole, 10, 0) is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_the_budget_of_the_server(tmp_path: Path) -> None:
    """Every function of every stage is there and runs; stages and rest are all that the process used."""
    budget = measure_budget(subject(EMBEDDED), photographs(None, tmp_path)[:3], 4, 1, 1)
    assert budget["requests"] > 0
    assert budget["never_called"] == []
    assert budget["refused"] >= 0
    assert all(budget["stages_ms"][stage] > 0 for stage in STAGES)
    assert sum(budget["stages_ms"].values()) + budget["ended_ms"] == pytest.approx(budget["total_ms"])
