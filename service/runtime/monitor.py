"""Whether the engines still answer rightly, and what is done when one does not.

From time to time the golden image goes through every engine, in its turn beside the requests. One that
answers otherwise, fails or hangs makes the server not ready; it is built anew until the golden check passes.
Requests that wait for it meanwhile are served by the new one, those that come are refused at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import chain, repeat

from engines.golden import WrongAnswer
from service.batching.types import BatchFailed, Closed, Paused
from service.runtime.model import LoadedGraph, LoadedModel
from service.runtime.repository import Repository
from service.telemetry.metrics import Metrics

logger = logging.getLogger("residuum")

LOOK_S = 0.5  # how often it looks for hung batches
RETRY_S = (0.5, 1, 2, 5, 10, 30)  # pauses between attempts to build an engine; the last one goes on


class Monitor:
    """Watches the graphs of one server.

    Args:
        check_interval: seconds between golden checks; 0: none unless a batch failed.
        hang_timeout: seconds after which a batch counts as hung.
        changed: called when a graph breaks or works again.
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
        self._checks: dict[LoadedGraph, asyncio.Task[None]] = {}  # under way
        self._broken: dict[LoadedGraph, str] = {}  # being built anew
        self._rebuilds: set[asyncio.Task[None]] = set()

    @property
    def broken(self) -> dict[str, str]:
        """`model graph` -> what is wrong, of the graphs that cannot serve now."""
        if not self._broken:  # the usual case, and every request asks
            return {}
        names = {graph: f"{model.name} {graph.kind}" for model, graph in self._models.graphs()}
        return {names[graph]: why for graph, why in self._broken.items() if graph in names}

    async def run(self) -> None:
        """Watch until cancelled; what is being built anew then goes on, for requests wait for it."""
        try:
            await asyncio.gather(self._look_for_hung_batches(), self._check_regularly())
        finally:
            for task in self._checks.values():
                task.cancel()

    def suspect(self, graph: LoadedGraph) -> None:
        """A batch failed: check that graph now, unless that is under way."""
        for model, each in self._models.graphs():
            if each is graph:
                self._start_check(model, graph)

    async def _check_regularly(self) -> None:
        """One graph after another: all at once would delay requests by more than a batch."""
        while self._check_interval:
            await asyncio.sleep(self._check_interval)
            for model, graph in self._models.graphs():
                self._start_check(model, graph)
                if check := self._checks.get(graph):
                    await asyncio.wait([check])

    async def _look_for_hung_batches(self) -> None:
        while True:
            await asyncio.sleep(min(LOOK_S, self._hang_timeout / 4))
            for scheduler in self._models.devices.schedulers:
                for job in scheduler.overdue(self._hang_timeout):
                    for model, graph in self._models.graphs():
                        if graph.batcher is job.source:
                            self._mend(model, graph, "a batch hangs")
                    scheduler.abandon(job)

    def _start_check(self, model: LoadedModel, graph: LoadedGraph) -> None:
        if graph not in self._checks and graph not in self._broken:
            task = self._checks[graph] = asyncio.create_task(self._check(model, graph))
            task.add_done_callback(lambda _: self._checks.pop(graph))

    async def _check(self, model: LoadedModel, graph: LoadedGraph) -> None:
        """It ends cancelled where the graph is built anew meanwhile."""
        problem = None
        try:
            await asyncio.to_thread(graph.probe)
        except (Closed, Paused):
            return
        except (WrongAnswer, BatchFailed) as error:
            problem = str(error)
        self._metrics.golden_check(model.name, graph.kind, passed=problem is None)
        if problem is not None:
            self._mend(model, graph, problem)

    def _mend(self, model: LoadedModel, graph: LoadedGraph, why: str) -> None:
        """Have it built anew, unless that is under way; from now on it answers nobody."""
        if graph in self._broken:
            return
        graph.batcher.pause()
        self._broken[graph] = why
        task = asyncio.create_task(self._rebuild(model, graph))
        self._rebuilds.add(task)
        task.add_done_callback(self._rebuilds.discard)
        self._changed()

    async def _rebuild(self, model: LoadedModel, graph: LoadedGraph) -> None:
        """Build it anew until that works, or it is served no more."""
        what = f"{model.name} {graph.kind}"
        pauses = chain(RETRY_S, repeat(RETRY_S[-1]))
        try:
            while (model, graph) in self._models.graphs():
                logger.error("%s is not right, and is built anew: %s", what, self._broken[graph])
                try:
                    await asyncio.to_thread(graph.rebuild)
                except Exception as error:  # whatever it is, the next attempt may not have it
                    self._broken[graph] = str(error) or repr(error)
                    await asyncio.sleep(next(pauses))
                else:
                    self._metrics.rebuilt(model.name, graph.kind)
                    logger.warning("%s serves again, with %s", what, graph.engine.name)
                    return
        finally:
            del self._broken[graph]
            self._changed()
