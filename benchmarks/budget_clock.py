"""Processor time of a process by stage: functions are wrapped from outside, and read their thread's clock.

A stage's time is its own: what a wrapped function calls that belongs to another stage is not counted twice.
The clocks are those of the threads (`time.thread_time_ns`), so waiting costs nothing. Of a coroutine only its
steps count, not what else the event loop does in between. What the threads used in all comes from the kernel
(/proc/self/task), also of threads that know no Python, such as an engine's.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from functools import wraps
from importlib import import_module
from inspect import iscoroutinefunction, isfunction
from pathlib import Path
from typing import Any

from artifact.errors import ResiduumError

COLLECTION = "garbage collection"
CALIBRATIONS = 20_000


class StageGone(ResiduumError):
    """A function that a stage names is not there any more."""


class _OfThread(threading.local):
    """The stages that a thread is in, and the processor time of each so far."""

    def __init__(self, threads: dict[int, dict[str, int]]) -> None:
        self.stack: list[str] = []
        self.last_ns = 0
        self.stages = threads.setdefault(threading.get_native_id(), {})


class StageClock:
    """Counts processor time by thread and stage, and calls by function."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self._threads: dict[int, dict[str, int]] = {}
        self._mine = _OfThread(self._threads)

    def enter(self, stage: str) -> None:
        """Count this thread's time for `stage` from now on."""
        mine, now = self._mine, time.thread_time_ns()
        if mine.stack:
            mine.stages[mine.stack[-1]] = mine.stages.get(mine.stack[-1], 0) + now - mine.last_ns
        mine.stack.append(stage)
        mine.last_ns = now

    def leave(self) -> None:
        """Count this thread's time for the stage before from now on."""
        mine, now = self._mine, time.thread_time_ns()
        stage = mine.stack.pop()
        mine.stages[stage] = mine.stages.get(stage, 0) + now - mine.last_ns
        mine.last_ns = now

    def wrap(self, stage: str, place: str) -> None:
        """Replace the function at `place`, as `package.module:name` or `package.module:Class.name`.

        Raises:
            StageGone: there is no such function.
        """
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        try:
            owner = import_module(module)
            for each in owners:
                owner = getattr(owner, each)
            function = getattr(owner, name)
        except (ImportError, AttributeError) as error:
            raise StageGone(f"the stage {stage!r} names {place}, which is gone: {error}") from error
        self.calls[place] = 0
        make = self._steps_of if iscoroutinefunction(function) else self._timed
        setattr(owner, name, make(function, stage, place))

    def watch_collector(self) -> None:
        """Count the cycle collector as a stage."""

        def on_collection(phase: str, _: Mapping[str, int]) -> None:
            if phase == "start":
                self.enter(COLLECTION)
            else:
                self.leave()

        gc.callbacks.append(on_collection)

    def snapshot(self) -> dict[str, Any]:
        """Return all counts so far, in milliseconds: of stages by thread, of threads, and of the process."""
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        return {
            "process_ms": time.process_time() * 1000,
            "calls": dict(self.calls),
            "threads": [
                {"id": number, "name": names.get(number), "comm": comm, "cpu_ms": cpu_ms}
                | {"stages_ms": {k: v / 1e6 for k, v in list(self._threads.get(number, {}).items())}}
                for number, comm, cpu_ms in threads_of_process()
            ],
        }

    def cost_ms(self) -> float:
        """Return what one wrapped call costs, in milliseconds of processor time."""
        nothing = self._timed(lambda: None, "nothing", "")
        self.calls[""] = 0
        before = time.thread_time_ns()
        for _ in range(CALIBRATIONS):
            nothing()
        del self.calls[""]
        self._mine.stages.pop("nothing")
        return (time.thread_time_ns() - before) / CALIBRATIONS / 1e6

    def _timed(self, function: Callable[..., Any], stage: str, place: str) -> Callable[..., Any]:
        def timed(*args: Any, **keywords: Any) -> Any:
            self.calls[place] += 1
            self.enter(stage)
            try:
                return function(*args, **keywords)
            finally:
                self.leave()

        return wraps(function)(timed) if isfunction(function) else timed

    def _steps_of(self, function: Callable[..., Any], stage: str, place: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **keywords: Any) -> _Steps:
            self.calls[place] += 1
            return _Steps(self, stage, function(*args, **keywords))

        return timed


class _Steps(Coroutine[Any, Any, Any]):
    """A coroutine of which every step is counted."""

    def __init__(self, clock: StageClock, stage: str, work: Coroutine[Any, Any, Any]) -> None:
        self._clock = clock
        self._stage = stage
        self._work = work

    def send(self, value: Any) -> Any:
        self._clock.enter(self._stage)
        try:
            return self._work.send(value)
        finally:
            self._clock.leave()

    def throw(self, *error: Any) -> Any:
        self._clock.enter(self._stage)
        try:
            return self._work.throw(*error)
        finally:
            self._clock.leave()

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # type: ignore[return-value]  # it has the methods of a generator

    def __iter__(self) -> _Steps:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def threads_of_process() -> list[tuple[int, str, float]]:
    """Return the number, the kernel's name and the milliseconds of processor time of every thread."""
    found = []
    for directory in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended
            nanoseconds = int((directory / "schedstat").read_text(encoding="ascii").split()[0])
            comm = (directory / "comm").read_text(encoding="utf-8", errors="replace").strip()
            found.append((int(directory.name), comm, nanoseconds / 1e6))
    return found
