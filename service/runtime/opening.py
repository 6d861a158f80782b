"""One graph of an artifact -> engines that may serve it: chosen, opened, warmed up and checked."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import get_args

from artifact.errors import ResiduumError
from artifact.manifest import Graph, GraphKind
from engines.engine import Engine, EngineError, batch_sizes
from engines.golden import WrongAnswer, check_golden, golden_batch
from engines.machine import go_behind_the_loop
from engines.registry import open_engine
from engines.selection.candidates import engine_options
from engines.selection.choice import Choice, choose, next_best
from engines.selection.source import Source
from service.batching.types import Runner
from service.settings import Settings

logger = logging.getLogger("residuum")

GRAPH_KINDS: tuple[GraphKind, ...] = get_args(GraphKind)
# An engine of its own for images that come alone must make them at least so much faster: its threads wait for
# one another, so an image takes more processor time in it, which others lack.
WORTH_ALONE_MS = 1.0
TIMED_S = 0.05  # how long each batch size is timed; at least one run


class LoadError(ResiduumError):
    """A model cannot be served; the message says which one and why."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A graph that may be served: its engines are warmed up and checked."""

    choice: Choice
    engines: tuple[Engine, ...]
    runners: tuple[Runner, ...]
    open_engines: ExitStack

    def close(self) -> None:
        """Close the engines; a second call does nothing."""
        self.open_engines.close()


def make_ready(source: Source[Settings]) -> Opened:
    """Return the best engines for a graph: chosen, opened, warmed up and checked.

    If the choice fails at a batch size that was not tried, the next best is opened. A choice that was
    remembered from an earlier start is measured again if it fails.

    Raises:
        EngineError, WrongAnswer, NothingRuns, LoadError: no engine can serve the graph.
    """
    go_behind_the_loop()  # this thread, and so the threads that engines start
    choice = choose(source)
    while True:
        try:
            return _open(source, choice)
        except (EngineError, WrongAnswer) as error:
            problem = str(error)
        if choice.remembered:
            logger.warning("%s: chosen on an earlier start, but: %s", choice.candidate, problem)
            choice = choose(source, remember=False)
        else:
            failed = choice
            choice = next_best(source, failed, problem)
            logger.warning("%s: chosen, but: %s; now %s", failed.candidate, problem, choice.candidate)


def _open(source: Source[Settings], choice: Choice) -> Opened:
    """Open the engine for load and, if several instances share the device and it pays, one that takes all."""
    candidate, settings = choice.candidate, source.settings
    alone = choice.instances > 1 and not settings.instances and choice.saved_alone_ms >= WORTH_ALONE_MS
    engines: list[Engine] = []
    runners: list[Runner] = []
    with ExitStack() as opened:
        for instances in (1, choice.instances) if alone else (choice.instances,):
            options = engine_options(settings, candidate.device, candidate.mode, source.cache, instances)
            path, precision = source.path(candidate.graph), candidate.graph.precision
            engines.append(open_engine(candidate.engine, path, precision, options))
            opened.callback(engines[-1].close)
            sizes = [1] if alone and instances == 1 else batch_sizes(settings.max_batch_size)
            batch_ms = _warm_up(engines[-1], candidate.graph, source, sizes)
            runners.append(Runner(engines[-1].run, batch_ms, engines[-1].info.instances))
        return Opened(choice, tuple(engines), tuple(runners), opened.pop_all())


def _warm_up(
    engine: Engine, graph: Graph, source: Source[Settings], sizes: Sequence[int]
) -> dict[int, float]:
    """Run and check every batch size in all instances at once; return batch size -> milliseconds."""
    batch_ms = {}
    instances = engine.info.instances
    with ThreadPoolExecutor(instances) as threads:
        for size in sizes:
            if source.stopped:
                raise LoadError(f"{source.manifest.name}: stopped while loading")
            batches = [golden_batch(source.row, graph, size)] * instances
            list(threads.map(engine.run, batches))  # the first run of a size allocates, and more on a GPU
            batch_ms[size] = inf
            until = time.monotonic() + TIMED_S
            while batch_ms[size] == inf or time.monotonic() < until:  # a hiccup can only add to the least
                started = time.monotonic()
                outputs = list(threads.map(engine.run, batches))
                batch_ms[size] = min(batch_ms[size], (time.monotonic() - started) * 1000)
            for rows in outputs:
                check_golden(rows, graph, source.manifest.num_classes, size)
    return batch_ms
