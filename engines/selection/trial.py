"""Trying one way to run a graph: open it, check it against the golden logits, time it, close it again.

What is timed: one image alone, on all threads; and an image at load, when every instance is busy with a batch
of the largest size, for each number of instances. It knows no settings, and not who wins.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from artifact.manifest import Graph, Manifest
from artifact.preprocess import Row
from engines.engine import Device, EngineError, EngineName, EngineOptions
from engines.golden import WrongAnswer, check_golden, golden_batch
from engines.registry import installed_version, open_engine


class EngineTrial(BaseModel):
    """One way to run a graph, and how it did on this machine when the model was loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: str
    engine: str
    version: str
    device: str
    mode: str | None = Field(description="a variant of the engine, such as `compile`; null: its usual one")
    instances: int = Field(1, description="batches at once that did best at load")
    batch_ms: dict[int, float] = Field(
        {}, description="batch size -> milliseconds, one batch alone on all threads, as far as it was timed"
    )
    loaded_ms: dict[int, float] = Field(
        {},
        description="number of instances -> milliseconds an image, all of them busy with the largest batches",
    )
    score_ms: float | None = Field(
        None,
        description="geometric mean of an image's milliseconds alone and at load; the least wins",
    )
    golden_error: float | None = Field(None, description="how far its logits are from the golden ones")
    problem: str | None = Field(None, description="why it cannot be chosen, or was not tried")
    chosen: bool = False


logger = logging.getLogger("residuum")

TIMED_S = 0.1  # for each measurement; at least one run
SLOW_S = 1.0  # a first run on the CPU that takes longer is the measurement
CLOSE = 1.05  # numbers of instances that take at most so much longer than the best are as good

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Candidate:
    """One way to run a graph; `mode` None is the engine's usual one."""

    graph: Graph
    engine: EngineName
    device: Device
    mode: str | None

    def __str__(self) -> str:
        words = (self.graph.precision, self.engine, self.mode if self.mode != self.device else None)
        return " ".join(word for word in words if word) + f" on {self.device}"

    def is_of(self, trial: EngineTrial) -> bool:
        return (self.graph.precision, self.engine, self.device, self.mode) == (
            trial.precision,
            trial.engine,
            trial.device,
            trial.mode,
        )


def trial_of(candidate: Candidate, **measured: Any) -> EngineTrial:
    return EngineTrial(
        precision=candidate.graph.precision,
        engine=candidate.engine,
        version=installed_version(candidate.engine) or "not installed",
        device=candidate.device,
        mode=candidate.mode,
        **measured,
    )


def try_candidate(
    candidate: Candidate,
    directory: Path,
    manifest: Manifest,
    row: Row,
    options: EngineOptions,
    counts: Sequence[int],
) -> EngineTrial:
    """Check and time a candidate with each number of instances; what fails is in the trial.

    Args:
        row: the golden row.
        counts: numbers of instances. The first must be right, and is the one that runs an image alone; of
            those after it that fail, the log tells.
    """
    loaded: dict[int, _Timed] = {}
    try:
        with ExitStack() as opened:
            for count in counts:
                try:
                    told = replace(options, instances=count)
                    bench = opened.enter_context(closing(_Bench(candidate, directory, manifest, row, told)))
                    if count == counts[0]:
                        alone = bench.alone()
                        _take_turns([alone])
                    loaded[count] = bench.loaded()
                except (EngineError, WrongAnswer) as problem:
                    if count == counts[0]:
                        raise
                    logger.warning("%s, %d instances: left out: %s", candidate, count, problem)
            _take_turns(loaded.values())
    except (EngineError, WrongAnswer) as problem:
        return trial_of(candidate, instances=counts[0], problem=str(problem))
    largest = max(options.batch_sizes)
    loaded_ms = {count: timed.fastest_ms / (count * largest) for count, timed in loaded.items()}
    instances = best_count(loaded_ms)
    return trial_of(
        candidate,
        instances=instances,
        batch_ms={1: alone.fastest_ms} | ({largest: loaded[1].fastest_ms} if 1 in loaded else {}),
        loaded_ms=loaded_ms,
        score_ms=math.sqrt(alone.fastest_ms * loaded_ms[instances]),
        golden_error=max(timed.golden_error for timed in (alone, *loaded.values())),
    )


def best_count(loaded_ms: Mapping[int, float]) -> int:
    """The number of instances for load: of those about as good as the best the least above 1, else 1.

    Several wait less for one another's threads, and for cores that decode: 2 to 7 % more on two cores than
    what is measured here. Many have less for a request when few come.
    """
    good = [count for count, ms in loaded_ms.items() if ms <= CLOSE * min(loaded_ms.values())]
    return min((count for count in good if count > 1), default=min(good))


class _Bench:
    """An engine, and the golden batches that it is timed with."""

    def __init__(
        self, candidate: Candidate, directory: Path, manifest: Manifest, row: Row, options: EngineOptions
    ) -> None:
        self._graph, self._manifest, self._row, self._options = candidate.graph, manifest, row, options
        self._slow_s = SLOW_S if candidate.device != "cuda" else math.inf
        path = directory / candidate.graph.file
        self._engine = open_engine(candidate.engine, path, candidate.graph.precision, options)
        self._pool = ThreadPoolExecutor(options.instances)

    def alone(self) -> _Timed:
        batch = golden_batch(self._row, self._graph, 1)
        return self._timed(lambda: [self._engine.run(batch)], 1)

    def loaded(self) -> _Timed:
        """All instances at once, each in a thread of its own, as they are served."""
        size = max(self._options.batch_sizes)
        batches = [golden_batch(self._row, self._graph, size)] * self._options.instances
        return self._timed(lambda: list(self._pool.map(self._engine.run, batches)), size)

    def close(self) -> None:
        self._pool.shutdown()
        self._engine.close()

    def _timed(self, run: Callable[[], list[Outputs]], size: int) -> _Timed:
        """Raises WrongAnswer, after the first run, which allocates and counts only where it is slow."""
        started = time.perf_counter()
        answers = run()
        first_s = time.perf_counter() - started
        errors = [check_golden(answer, self._graph, self._manifest.num_classes, size) for answer in answers]
        return _Timed(run, max(errors), first_s * 1000 if first_s > self._slow_s else math.inf)


@dataclass
class _Timed:
    """The least that something took: what else the machine does can only add to it."""

    run: Callable[[], object]
    golden_error: float
    fastest_ms: float  # infinity: not timed yet

    def run_once(self) -> None:
        started = time.perf_counter()
        self.run()
        self.fastest_ms = min(self.fastest_ms, (time.perf_counter() - started) * 1000)


def _take_turns(found: Collection[_Timed]) -> None:
    """`TIMED_S` for each of them, in turn: what else the machine does meanwhile meets all alike."""
    left = [timed for timed in found if timed.fastest_ms == math.inf]
    end = time.monotonic() + TIMED_S * len(left)
    for timed in left:
        timed.run_once()
    while time.monotonic() < end:
        for timed in left:
            timed.run_once()
