"""Try one way to run a graph: open it, check it against the golden logits, time it, close it again.

Two things are timed: a single image on all threads, and, for each number of instances, an image while every
instance runs a batch of the largest size. This module knows no settings, and not how the winner is chosen.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from engines.engine import EngineError, EngineOptions
from engines.golden import WrongAnswer, check_golden, golden_batch
from engines.registry import installed_version, open_engine
from engines.selection.candidates import Candidate
from engines.selection.source import S, Source

logger = logging.getLogger("residuum")

TIMED_S = 0.1  # duration of each measurement; at least one run
SLOW_S = 1.0  # a first run on the CPU that takes longer is already the measurement
CLOSE = 1.05  # numbers of instances within this factor of the best count as equally good

Outputs = dict[str, NDArray[Any]]


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

    def is_of(self, candidate: Candidate) -> bool:
        """Return whether this is a trial of `candidate`."""
        tried = (self.precision, self.engine, self.device, self.mode)
        return tried == (candidate.graph.precision, candidate.engine, candidate.device, candidate.mode)


def trial_of(candidate: Candidate, **measured: Any) -> EngineTrial:
    """Return a trial of the candidate with what was measured."""
    return EngineTrial(
        precision=candidate.graph.precision,
        engine=candidate.engine,
        version=installed_version(candidate.engine) or "not installed",
        device=candidate.device,
        mode=candidate.mode,
        **measured,
    )


def try_candidate(
    candidate: Candidate, source: Source[S], options: EngineOptions, counts: Sequence[int]
) -> EngineTrial:
    """Check and time a candidate with each number of instances; `EngineTrial.problem` says what failed.

    Args:
        counts: numbers of instances. The first one also runs a single image, and the candidate fails if it
            fails. If a later one fails, it is logged and left out.
    """
    loaded: dict[int, _Timed] = {}
    try:
        with ExitStack() as opened:
            for count in counts:
                try:
                    told = replace(options, instances=count)
                    bench = opened.enter_context(closing(_Bench(candidate, source, told)))
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
    """Return the number of instances to run under load.

    Among those within the factor CLOSE of the best, take the smallest above 1, or 1 if there is none. Prefer
    more than one instance: parallel instances spend less time waiting for each other's threads and for
    decoding, worth 2 to 7 % on two cores that this measurement does not capture. Prefer few instances: each
    has fewer threads, so a single request takes longer.
    """
    good = [count for count, ms in loaded_ms.items() if ms <= CLOSE * min(loaded_ms.values())]
    return min((count for count in good if count > 1), default=min(good))


class _Bench:
    """An engine, and the golden batches that it is timed with."""

    def __init__(self, candidate: Candidate, source: Source[S], options: EngineOptions) -> None:
        self._graph, self._options = candidate.graph, options
        self._row, self._num_classes = source.row, source.manifest.num_classes
        self._slow_s = SLOW_S if candidate.device != "cuda" else math.inf
        path = source.path(self._graph)
        self._engine = open_engine(candidate.engine, path, self._graph.precision, options)
        self._pool = ThreadPoolExecutor(options.instances)

    def alone(self) -> _Timed:
        batch = golden_batch(self._row, self._graph, 1)
        return self._timed(lambda: [self._engine.run(batch)], 1)

    def loaded(self) -> _Timed:
        """Time all instances at once, each in its own thread, as a server runs them."""
        size = max(self._options.batch_sizes)
        batches = [golden_batch(self._row, self._graph, size)] * self._options.instances
        return self._timed(lambda: list(self._pool.map(self._engine.run, batches)), size)

    def close(self) -> None:
        self._pool.shutdown()
        self._engine.close()

    def _timed(self, run: Callable[[], list[Outputs]], size: int) -> _Timed:
        """Run once and check the answers. This first run allocates, so its time counts only if it is slow.

        Raises:
            WrongAnswer: an answer is not the golden one.
        """
        started = time.perf_counter()
        answers = run()
        first_s = time.perf_counter() - started
        errors = [check_golden(answer, self._graph, self._num_classes, size) for answer in answers]
        return _Timed(run, max(errors), first_s * 1000 if first_s > self._slow_s else math.inf)


@dataclass
class _Timed:
    """The shortest duration of a run: other work on the machine can only make a run longer."""

    run: Callable[[], object]
    golden_error: float
    fastest_ms: float  # infinity: not timed yet

    def run_once(self) -> None:
        started = time.perf_counter()
        self.run()
        self.fastest_ms = min(self.fastest_ms, (time.perf_counter() - started) * 1000)


def _take_turns(found: Collection[_Timed]) -> None:
    """Time each of them for about TIMED_S, one run each in turn, so that other work affects all alike."""
    left = [timed for timed in found if timed.fastest_ms == math.inf]
    end = time.monotonic() + TIMED_S * len(left)
    for timed in left:
        timed.run_once()
    while time.monotonic() < end:
        for timed in left:
            timed.run_once()
