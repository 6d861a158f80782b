"""The monitor: checks that the engines still answer rightly, and rebuilds those that do not.

At intervals the golden image runs through every engine, in its turn beside the requests. A graph whose engine
gives another answer, fails or hangs is broken: the server is not ready, and the graph is rebuilt until its
golden check passes. Requests that wait for the graph are served by the new engines; new ones are refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import chain, repeat

from engines.golden import WrongAnswer
from service.batching.scheduler import Job, Scheduler
from service.batching.types import BatchFailed, Closed, Paused
from service.runtime.model import LoadedGraph, LoadedModel
from service.runtime.repository import Repository
from service.telemetry.metrics import Metrics

logger = logging.getLogger("residuum")

LOOK_S = 0.5  # seconds between two looks for hung batches
RETRY_S = (0.5, 1, 2, 5, 10, 30)  # pauses between attempts to rebuild a graph; the last one repeats


class Monitor:
    """Watches the graphs of one server.

    Args:
        check_interval: seconds between golden checks; 0: none unless a batch failed.
        hang_timeout: seconds after which a batch counts as hung.
        changed: called when a graph breaks or serves again.
    """

    def __init__(
        self,
        models: Repository,
        metrics: Metrics,
        *,
        check_interval: float,
        hang_timeout: float,
        changed: Callable[[], None],
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._check_interval = check_interval
        self._hang_timeout = hang_timeout
        self._changed = changed
        self._checks: dict[LoadedGraph, asyncio.Task[None]] = {}
        self._rebuilds: set[asyncio.Task[None]] = set()

    @property
    def broken(self) -> dict[str, str]:
        """The problems of graphs that cannot serve now, by `model graph`."""
        return {
            f"{model.name} {graph.kind}": problem
            for model, graph in self._models.graphs()
            if (problem := graph.problem) is not None
        }

    async def run(self) -> None:
        """Watch until cancelled; rebuilding goes on then, because requests wait for it."""
        try:
            await asyncio.gather(self._look_for_hung_batches(), self._check_regularly())
        finally:
            for task in self._checks.values():
                task.cancel()

    def suspect(self, graph: LoadedGraph) -> None:
        """Check a graph on which a batch failed, unless it is being checked."""
        for model, each in self._models.graphs():
            if each is graph:
                self._start_check(model, graph)

    async def _check_regularly(self) -> None:
        """Check one graph after another: all at once would delay requests by more than a batch."""
        while self._check_interval:
            await asyncio.sleep(self._check_interval)
            for model, graph in self._models.graphs():
                self._start_check(model, graph)
                if check := self._checks.get(graph):
                    await asyncio.wait([check])

    async def _look_for_hung_batches(self) -> None:
        """Give up every batch that is seen to run for longer than the hang timeout.

        Looks are counted rather than time read from a clock: when the process was paused, by a signal, with
        its container or with the whole machine, no batch has hung.
        """
        look_s = min(LOOK_S, self._hang_timeout / 4)
        seen_s: dict[Job, float] = {}
        while True:
            await asyncio.sleep(look_s)
            running = {job: each for each in self._models.devices.schedulers for job in each.running()}
            seen_s = {job: seen_s.get(job, 0.0) + look_s for job in running}
            for job, scheduler in running.items():
                if seen_s[job] > self._hang_timeout:
                    self._give_up(job, scheduler)

    def _give_up(self, job: Job, scheduler: Scheduler) -> None:
        for model, graph in self._models.graphs():
            if graph.batcher is job.source:
                self._break(model, graph, "a batch hangs")
        scheduler.abandon(job)

    def _start_check(self, model: LoadedModel, graph: LoadedGraph) -> None:
        if graph not in self._checks and graph.problem is None:
            task = self._checks[graph] = asyncio.create_task(self._check(model, graph))
            task.add_done_callback(lambda _: self._checks.pop(graph))

    async def _check(self, model: LoadedModel, graph: LoadedGraph) -> None:
        """Run the golden check; it ends cancelled if the graph breaks meanwhile."""
        problem = None
        try:
            await asyncio.to_thread(graph.probe)
        except (Closed, Paused):
            return
        except (WrongAnswer, BatchFailed) as error:
            problem = str(error)
        self._metrics.golden_check(model.name, graph.kind, passed=problem is None)
        if problem is not None:
            self._break(model, graph, problem)

    def _break(self, model: LoadedModel, graph: LoadedGraph, problem: str) -> None:
        """Stop using a graph and rebuild it, unless that is already under way."""
        if graph.problem is not None:
            return
        graph.mark_broken(problem)
        task = asyncio.create_task(self._rebuild(model, graph, problem))
        self._rebuilds.add(task)
        task.add_done_callback(self._rebuilds.discard)
        self._changed()

    async def _rebuild(self, model: LoadedModel, graph: LoadedGraph, problem: str) -> None:
        """Rebuild the graph until that succeeds, or its model is served no more."""
        what = f"{model.name} {graph.kind}"
        pauses = chain(RETRY_S, repeat(RETRY_S[-1]))
        try:
            while (model, graph) in self._models.graphs():
                logger.error("%s is broken and is being rebuilt: %s", what, problem)
                try:
                    await asyncio.to_thread(graph.rebuild)
                except Exception as error:  # whatever it is, the next attempt may succeed
                    problem = str(error) or repr(error)
                    graph.mark_broken(problem)
                    await asyncio.sleep(next(pauses))
                else:
                    self._metrics.rebuilt(model.name, graph.kind)
                    logger.warning("%s serves again, with %s", what, graph.engine.name)
                    return
        finally:
            self._changed()
