"""What a loaded model is: its graphs, each with the engines that run it and the batcher in front of them."""

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
from service.batching.types import Closed
from service.runtime.opening import Opened, make_ready
from service.settings import Settings
from service.telemetry.metrics import GraphMeter

GPU_SLOTS = 2  # batches that overlap on a GPU: one computes while the other one's data travel


class Devices:
    """A scheduler for each device that something runs on: all models of a server share them."""

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
    """One of a model's graphs: what runs it, why that was chosen, and the batcher in front of it."""

    def __init__(self, source: Source[Settings], opened: Opened, batcher: Batcher, meter: GraphMeter) -> None:
        self.batcher = batcher
        self.meter = meter
        self._source = source
        self._opened = opened
        self._open = True  # the engines are
        self._closed = False
        self._lock = Lock()  # of these three: a model may be unloaded while one of its graphs is built anew

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
        """What runs it at load."""
        return self._opened.engines[-1].info

    @property
    def engines(self) -> tuple[Engine, ...]:
        """What runs it: for an entry that comes alone, where that is another one, and at load."""
        return self._opened.engines

    @property
    def instances(self) -> int:
        """Batches of it that run at once."""
        return self.engine.instances

    @property
    def trials(self) -> tuple[EngineTrial, ...]:
        return self._opened.choice.trials

    @property
    def remembered(self) -> bool:
        """Whether the choice was measured on an earlier start."""
        return self._opened.choice.remembered

    def probe(self) -> None:
        """Run the golden image through each of its engines, in their turn beside what is being served.

        Raises:
            WrongAnswer, BatchFailed: it is not as it should be.
            CancelledError: it is built anew or closed meanwhile.
        """
        batch = golden_batch(self._source.row, self.graph, 1)
        for future in self.batcher.probe({name: array[0] for name, array in batch.items()}):
            result = future.result()
            outputs = {name: array[None] for name, array in result.outputs.items()}
            check_golden(outputs, self.graph, self._source.manifest.num_classes, 1)

    def rebuild(self) -> None:
        """Open, warm up and check it again; what waits goes on waiting, and is served by the new engines.

        Raises:
            EngineError, WrongAnswer, NothingRuns, LoadError: nothing runs it now; no batch starts until it
                is called again.
            Closed: by now it is closed.
        """
        self.batcher.pause()
        if self.batcher.wait_until_idle(self._source.settings.hang_timeout):
            self._close_engines()
        # Also while the server drains: requests wait for it. And what is measured beside them is not kept.
        opened = make_ready(replace(self._source, stop=None, keep=False))
        with self._lock:
            if self._closed:
                opened.close()
                raise Closed("closed while it was built anew")
            self._opened, self._open = opened, True
            self.batcher.resume(opened.runners)

    def close(self, timeout_s: float | None = None) -> None:
        """End the batcher, then the engines; one that is still running after `timeout_s` is left alone."""
        idle = self.batcher.close(timeout_s)
        with self._lock:
            self._closed = True
        if idle:
            self._close_engines()

    def _close_engines(self) -> None:
        """Once; engines that a batch hangs in may be in use for ever, and are left alone."""
        with self._lock:
            if self._open and not self.batcher.gave_up:
                self._opened.close()
            self._open = False


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready: its description, and its graphs; classify is always among them."""

    directory: Path
    manifest: Manifest
    graphs: dict[GraphKind, LoadedGraph]
    own_devices: Devices | None  # that nobody else uses

    @property
    def name(self) -> str:
        return self.manifest.name

    @cached_property
    def fingerprint(self) -> str:
        """Of the manifest, which has the hashes of all files: another one where answers may differ."""
        return hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()

    @property
    def precision(self) -> Precision:
        """Of the classify graph."""
        return self.graphs["classify"].precision

    @property
    def engine(self) -> EngineInfo:
        """Of the classify graph."""
        return self.graphs["classify"].engine

    @property
    def classify(self) -> Batcher:
        return self.graphs["classify"].batcher

    @property
    def introspect(self) -> Batcher | None:
        """None: the artifact has no introspect graph."""
        graph = self.graphs.get("introspect")
        return graph.batcher if graph else None

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what is queued, for `timeout_s` at most, and end batchers and engines."""
        for graph in self.graphs.values():
            graph.close(timeout_s)
        if self.own_devices is not None:
            self.own_devices.close(timeout_s)
