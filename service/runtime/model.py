"""A loaded model: its graphs, each with the engines that run it and the batcher in front of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock

from artifact.manifest import (
    Graph,
    GraphKind,
    Manifest,
    Precision,
)
from engines.engine import Engine, EngineInfo
from engines.golden import check_golden, golden_batch
from engines.selection.candidates import cpu_threads
from engines.selection.source import Source
from engines.selection.trial import EngineTrial
from service.batching.batcher import Batcher
from service.batching.scheduler import Scheduler
from service.batching.types import Closed, State
from service.runtime.opening import Opened, make_ready
from service.settings import Settings
from service.telemetry.metrics import GraphMeter

GPU_SLOTS = 2  # batches that overlap on a GPU: one computes while the data of the other are copied


class Devices:
    """A scheduler for each device that runs something; all models of a server share them."""

    def __init__(self, settings: Settings) -> None:
        self._slots = {
            "cpu": max(cpu_threads(settings), settings.instances),
            "cuda": max(GPU_SLOTS, settings.instances),
        }
        self._schedulers: dict[str, Scheduler] = {}

    def scheduler(self, device: str) -> Scheduler:
        if device not in self._schedulers:
            self._schedulers[device] = Scheduler(device, self._slots[device])
        return self._schedulers[device]

    @property
    def schedulers(self) -> tuple[Scheduler, ...]:
        return tuple(self._schedulers.values())

    def close(self, timeout_s: float | None = None) -> None:
        for scheduler in self._schedulers.values():
            scheduler.close(timeout_s)


class LoadedGraph:
    """One of a model's graphs: the engines that run it, why they were chosen, and the batcher before them.

    Its life is the `state` of its batcher: SERVING, PAUSED while it is broken, CLOSING and CLOSED.
    """

    def __init__(self, source: Source[Settings], opened: Opened, batcher: Batcher, meter: GraphMeter) -> None:
        self.batcher = batcher
        self.meter = meter
        self._source = source
        self._opened = opened
        self._problem = ""
        self._lock = Lock()  # of `_opened`: a model may be unloaded while one of its graphs is rebuilt

    @property
    def kind(self) -> GraphKind:
        return self._source.kind

    @property
    def graph(self) -> Graph:
        return self._opened.choice.candidate.graph

    @property
    def precision(self) -> Precision:
        return self.graph.precision

    @property
    def engine(self) -> EngineInfo:
        """The engine that runs the graph at load."""
        return self._opened.engines[-1].info

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine for an entry that comes alone, if there is a separate one, then the engine at load."""
        return self._opened.engines

    @property
    def instances(self) -> int:
        """The number of its batches that run at the same time."""
        return self.engine.instances

    @property
    def trials(self) -> tuple[EngineTrial, ...]:
        return self._opened.choice.trials

    @property
    def remembered(self) -> bool:
        """Whether the choice of engines was measured on an earlier start."""
        return self._opened.choice.remembered

    @property
    def problem(self) -> str | None:
        """Why the graph cannot serve now; None unless it is broken."""
        return self._problem if self.batcher.state is State.PAUSED else None

    def probe(self) -> None:
        """Run the golden image through each of its engines, in their turn beside what is being served.

        Raises:
            WrongAnswer, BatchFailed: an engine does not answer as it should.
            Paused, Closed, CancelledError: the graph is being rebuilt or closed.
        """
        batch = golden_batch(self._source.row, self.graph, 1)
        for future in self.batcher.probe({name: array[0] for name, array in batch.items()}):
            result = future.result()
            outputs = {name: array[None] for name, array in result.outputs.items()}
            check_golden(outputs, self.graph, self._source.manifest.num_classes, 1)

    def mark_broken(self, problem: str) -> None:
        """Start no batch until `rebuild` succeeds; entries that wait go on waiting."""
        self._problem = problem
        self.batcher.pause()

    def rebuild(self) -> None:
        """Open, warm up and check new engines, and serve what waits with them.

        Raises:
            EngineError, WrongAnswer, NothingRuns, LoadError: no engine runs the graph now; it stays broken.
            Closed: the graph was closed meanwhile.
        """
        self.batcher.pause()
        if self.batcher.wait_until_idle(self._source.settings.hang_timeout):
            self._close_engines()
        # Without `stop`: requests wait for the graph, also while the server drains. Without `keep`: a choice
        # that is measured beside other work is not for the next start.
        opened = make_ready(replace(self._source, stop=None, keep=False))
        with self._lock:
            try:
                self.batcher.resume(opened.runners)
            except Closed:
                opened.close()
                raise
            self._opened = opened

    def close(self, timeout_s: float | None = None) -> None:
        """End the batcher, then the engines; leave an engine alone that still runs after `timeout_s`."""
        if self.batcher.close(timeout_s):
            self._close_engines()

    def _close_engines(self) -> None:
        """Close the engines, unless a batch hangs in one and may use it for ever."""
        with self._lock:
            if not self.batcher.hangs:
                self._opened.close()


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready: its manifest and its graphs, of which `classify` is always one."""

    directory: Path
    manifest: Manifest
    graphs: dict[GraphKind, LoadedGraph]
    own_devices: Devices | None  # None if the model shares the devices of a server

    @property
    def name(self) -> str:
        return self.manifest.name

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, which has the hashes of all files: it differs where answers may differ."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    @property
    def precision(self) -> Precision:
        """The precision of the classify graph."""
        return self.graphs["classify"].precision

    @property
    def engine(self) -> EngineInfo:
        """The engine of the classify graph."""
        return self.graphs["classify"].engine

    @property
    def classify(self) -> Batcher:
        return self.graphs["classify"].batcher

    @property
    def introspect(self) -> Batcher | None:
        """The batcher of the introspect graph; None if the artifact has no such graph."""
        graph = self.graphs.get("introspect")
        return graph.batcher if graph else None

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what is queued, within `timeout_s` for each graph, and end batchers and engines."""
        for graph in self.graphs.values():
            graph.close(timeout_s)
        if self.own_devices is not None:
            self.own_devices.close(timeout_s)
