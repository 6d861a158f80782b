"""Artifact on disk -> a model that may be served: verified, warmed and checked engines behind batchers.

A model is served only after its files match their SHA-256, its graphs have run at every batch size, and the
golden image came out of each with the golden logits. It knows no HTTP, and not which models a server has.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from math import inf
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple, get_args

from models.manifest import MANIFEST_FILE, Graph, GraphKind, Manifest, ManifestError, Precision, read_manifest
from service.batch_sizes import batch_sizes
from service.batch_types import Closed, Row, Runner
from service.batcher import Batcher
from service.engines import Engine, EngineError, EngineInfo, open_engine
from service.golden import WrongAnswer, check_golden, golden_batch, golden_row
from service.metrics import GraphMeter, Metrics
from service.scheduler import Scheduler
from service.schemas import EngineTrial
from service.selection import (
    Choice,
    NothingRuns,
    cache_directory,
    choose,
    cpu_threads,
    engine_options,
    next_best,
)
from service.settings import EMBEDDED, Settings

logger = logging.getLogger("residuum")

GRAPH_KINDS: tuple[GraphKind, ...] = get_args(GraphKind)
TIMED_S = 0.05  # of timing each batch size; at least one run
GPU_SLOTS = 2  # batches that overlap on a GPU: one computes while the other one's data travel


class LoadError(Exception):
    """A model cannot be served; the message says which and why."""


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


@dataclass(frozen=True)
class _Source:
    """Where a graph comes from, and all that opening it again takes."""

    directory: Path
    manifest: Manifest
    kind: GraphKind
    row: Row  # the golden one
    settings: Settings
    stop: Event | None
    keep: bool  # the choice of an engine, for the next start


class _Opened(NamedTuple):
    """A graph that may be served: its engines are warmed and checked."""

    choice: Choice
    engines: tuple[Engine, ...]
    runners: tuple[Runner, ...]

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


class LoadedGraph:
    """One of a model's graphs: what runs it, why that was chosen, and the batcher in front of it."""

    def __init__(self, source: _Source, opened: _Opened, batcher: Batcher, meter: GraphMeter) -> None:
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
        opened = _make_ready(replace(self._source, stop=None, keep=False))
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


def find_artifact(name: str, artifacts: Path) -> Path:
    """The directory of the artifact with that name: the embedded one, one in `artifacts`, or a path.

    Raises:
        LoadError: there is none; the message lists what there is.
    """
    if name == EMBEDDED:
        return Path(str(files("models") / "embedded"))
    for directory in (artifacts / name, Path(name).expanduser()):
        if (directory / MANIFEST_FILE).is_file():
            return directory
    names = sorted(path.parent.name for path in artifacts.glob(f"*/{MANIFEST_FILE}"))
    raise LoadError(
        f"--model {name}: there is no artifact of that name in {artifacts}, nor at that path; "
        f"there is: {', '.join([EMBEDDED, *names])}"
    )


def load_model(
    directory: Path,
    settings: Settings,
    stop: Event | None = None,
    *,
    devices: Devices | None = None,
    metrics: Metrics | None = None,
    keep: bool = True,
) -> LoadedModel:
    """Read, verify, warm up and check the artifact in `directory`, unless `stop` is set meanwhile.

    Args:
        devices: of the server; None: the model has its own.
        keep: the choice of engines, for the next start; not where it is measured beside other work.

    Raises:
        LoadError: whatever is wrong with it, or with the engine, precision or device asked for.
    """
    opened: dict[GraphKind, _Opened] = {}
    sources: dict[GraphKind, _Source] = {}
    with ExitStack() as stack:  # closed where a later one fails
        try:
            manifest = read_manifest(directory)
            _check_numbers(manifest)
            row = golden_row(directory, manifest)
            for kind in GRAPH_KINDS:
                if kind == "classify" or manifest.graph(kind) is not None:
                    sources[kind] = _Source(directory, manifest, kind, row, settings, stop, keep)
                    opened[kind] = _make_ready(sources[kind])
                    stack.callback(opened[kind].close)
        except (ManifestError, EngineError, WrongAnswer, NothingRuns) as error:
            raise LoadError(f"cannot load {directory}: {error}") from error
        stack.pop_all()
    if manifest.provenance.weights == "random":
        logger.warning("%s has random weights: labels mean nothing.", manifest.name)
    shared = devices or Devices(settings)
    graphs: dict[GraphKind, LoadedGraph] = {}
    for kind, source in sources.items():
        meter = (metrics or Metrics()).graph(manifest.name, kind)
        batcher = _start(opened[kind], settings, shared, meter, graphs.get("classify"))
        graphs[kind] = LoadedGraph(source, opened[kind], batcher, meter)
    return LoadedModel(directory, manifest, graphs, None if devices else shared)


def _start(
    opened: _Opened, settings: Settings, devices: Devices, meter: GraphMeter, before: LoadedGraph | None
) -> Batcher:
    """The batcher of a graph; `before` goes first, and is never held up by a longer batch than its own."""
    return Batcher(
        opened.runners,
        devices.scheduler(opened.engines[-1].info.device),
        max_wait_ms=settings.max_wait_ms,
        queue_capacity=settings.queue_capacity,
        priority=0 if before is None else 1,
        max_batch_ms=inf if before is None else before.batcher.longest_batch_ms,
        observer=meter,
    )


def _check_numbers(manifest: Manifest) -> None:
    """The manifest must agree with itself on the number of classes."""
    counts = {len(manifest.labels), *(len(graph.golden_logits) for graph in manifest.graphs)}
    if counts != {manifest.num_classes}:
        raise LoadError(
            f"{manifest.name}: {manifest.num_classes} classes, but labels or golden logits differ"
        )


def _make_ready(source: _Source) -> _Opened:
    """Choose, open, warm up and check: the best, or where it fails at a size not tried, the next best.

    A choice remembered from an earlier start is made anew if it fails.
    """
    asked = (source.directory, source.manifest, source.kind, source.row, source.settings)
    choice = choose(*asked, stop=source.stop, keep=source.keep)
    while True:
        try:
            return _open(source, choice)
        except (EngineError, WrongAnswer) as error:
            problem = str(error)
        if choice.remembered:
            logger.warning("%s: chosen on an earlier start, but: %s", choice.candidate, problem)
            choice = choose(*asked, remember=False, stop=source.stop, keep=source.keep)
        else:
            failed = choice
            choice = next_best(*asked, failed, problem, stop=source.stop, keep=source.keep)
            logger.warning("%s: chosen, but: %s; now %s", failed.candidate, problem, choice.candidate)


def _open(source: _Source, choice: Choice) -> _Opened:
    """An engine for load, and where several instances share the device, one that takes all of it."""
    candidate, settings = choice.candidate, source.settings
    cache = cache_directory(source.directory, source.manifest, settings)
    alone = choice.instances > 1 and not settings.instances
    engines: list[Engine] = []
    runners: list[Runner] = []
    try:
        for instances in (1, choice.instances) if alone else (choice.instances,):
            options = engine_options(settings, candidate.device, candidate.mode, cache, instances)
            path = source.directory / candidate.graph.file
            engines.append(open_engine(candidate.engine, path, candidate.graph.precision, options))
            sizes = [1] if alone and instances == 1 else batch_sizes(settings.max_batch_size)
            batch_ms = _warm_up(engines[-1], candidate.graph, source, sizes)
            runners.append(Runner(engines[-1].run, batch_ms, engines[-1].info.instances))
    except Exception:
        for engine in engines:
            engine.close()
        raise
    return _Opened(choice, tuple(engines), tuple(runners))


def _warm_up(engine: Engine, graph: Graph, source: _Source, sizes: Sequence[int]) -> dict[int, float]:
    """Run every batch size in all instances at once and check what comes out; batch size -> milliseconds."""
    batch_ms = {}
    instances = engine.info.instances
    with ThreadPoolExecutor(instances) as threads:
        for size in sizes:
            if source.stop is not None and source.stop.is_set():
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
