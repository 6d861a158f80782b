"""Which models are loaded. Artifact on disk -> verified, warmed and checked engines behind batchers.

A model is served only after its files match their SHA-256, its graphs have run at every batch size, and the
golden image came out of each with the golden logits. It knows no HTTP but the error for an unknown name.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from threading import Event
from typing import NamedTuple

from models.manifest import MANIFEST_FILE, Graph, GraphKind, Manifest, ManifestError, Precision, read_manifest
from service.batcher import Batcher, Row, batch_sizes
from service.engines import Engine, EngineError, EngineInfo, open_engine
from service.errors import UnknownModel
from service.golden import WrongAnswer, check_golden, golden_batch, golden_row
from service.schemas import EngineTrial
from service.selection import Choice, NothingRuns, cache_directory, choose, engine_options, next_best
from service.settings import EMBEDDED, Settings

logger = logging.getLogger("residuum")

GRAPH_KINDS: tuple[GraphKind, ...] = ("classify", "introspect")


class LoadError(Exception):
    """A model cannot be served; the message says which and why."""


@dataclass(frozen=True)
class LoadedGraph:
    """One of a model's graphs: what runs it, why that was chosen, and the batcher in front of it."""

    precision: Precision
    engine: EngineInfo
    trials: tuple[EngineTrial, ...]
    remembered: bool  # the choice was measured on an earlier start
    batcher: Batcher
    running: Engine

    def close(self, timeout_s: float | None = None) -> None:
        """End the batcher, then the engine; one that is still running after `timeout_s` is left alone."""
        if self.batcher.close(timeout_s):
            self.running.close()


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready: its description, and its graphs; classify is always among them."""

    manifest: Manifest
    graphs: dict[GraphKind, LoadedGraph]

    @property
    def name(self) -> str:
        return self.manifest.name

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


class Repository:
    """The loaded models by name; the first one is the default."""

    def __init__(self, settings: Settings, stop: Event | None = None) -> None:
        """Load every model of `settings.model`, unless `stop` is set meanwhile.

        Raises:
            LoadError: one of them cannot be served, or stopped; those loaded before it are closed again.
        """
        self._models: dict[str, LoadedModel] = {}
        try:
            for name in settings.model:
                model = load_model(find_artifact(name, settings.artifacts), settings, stop)
                if model.name in self._models:
                    model.close()
                    raise LoadError(f"--model {name}: a model named {model.name!r} is loaded already")
                self._models[model.name] = model
        except LoadError:
            self.close()
            raise

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._models.values())

    def get(self, name: str | None) -> LoadedModel:
        """The model of that name, or the default one.

        Raises:
            UnknownModel: none has that name.
        """
        if name is None:
            return next(iter(self._models.values()))
        try:
            return self._models[name]
        except KeyError:
            loaded = ", ".join(self._models)
            raise UnknownModel(f"There is no model named {name!r}.", f"Loaded: {loaded}.") from None

    def close(self, timeout_s: float | None = None) -> None:
        for model in self._models.values():
            model.close(timeout_s)


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


def load_model(directory: Path, settings: Settings, stop: Event | None = None) -> LoadedModel:
    """Read, verify, warm up and check the artifact in `directory`, unless `stop` is set meanwhile.

    Raises:
        LoadError: whatever is wrong with it, or with the engine, precision or device asked for.
    """
    ready: dict[GraphKind, _ReadyGraph] = {}
    with ExitStack() as opened:  # closed where a later one fails
        try:
            manifest = read_manifest(directory)
            _check_numbers(manifest)
            row = golden_row(directory, manifest)
            for kind in GRAPH_KINDS:
                if kind == "classify" or manifest.graph(kind) is not None:
                    ready[kind] = _make_ready(directory, manifest, kind, row, settings, stop)
                    opened.callback(ready[kind].engine.close)
        except (ManifestError, EngineError, WrongAnswer, NothingRuns) as error:
            raise LoadError(f"cannot load {directory}: {error}") from error
        opened.pop_all()
    if manifest.provenance.weights == "random":
        logger.warning("%s has random weights: labels mean nothing.", manifest.name)
    graphs = {kind: _start(f"{manifest.name}-{kind}", graph, settings) for kind, graph in ready.items()}
    return LoadedModel(manifest, graphs)


def _check_numbers(manifest: Manifest) -> None:
    """The manifest must agree with itself on the number of classes."""
    counts = {len(manifest.labels), *(len(graph.golden_logits) for graph in manifest.graphs)}
    if counts != {manifest.num_classes}:
        raise LoadError(
            f"{manifest.name}: {manifest.num_classes} classes, but labels or golden logits differ"
        )


class _ReadyGraph(NamedTuple):
    """A graph that may be served: warmed and checked at every batch size, which `batch_ms` maps to ms."""

    choice: Choice
    engine: Engine
    batch_ms: dict[int, float]


def _make_ready(
    directory: Path, manifest: Manifest, kind: GraphKind, row: Row, settings: Settings, stop: Event | None
) -> _ReadyGraph:
    """Choose, open, warm up and check: the best, or where it fails at a size not tried, the next best.

    A choice remembered from an earlier start is made anew if it fails.
    """
    choice = choose(directory, manifest, kind, row, settings, stop=stop)
    while True:
        try:
            return _open(directory, manifest, choice, row, settings, stop)
        except (EngineError, WrongAnswer) as error:
            problem = str(error)
        if choice.remembered:
            logger.warning("%s: chosen on an earlier start, but: %s", choice.candidate, problem)
            choice = choose(directory, manifest, kind, row, settings, remember=False, stop=stop)
        else:
            failed = choice
            choice = next_best(directory, manifest, kind, row, settings, failed, problem, stop=stop)
            logger.warning("%s: chosen, but: %s; now %s", failed.candidate, problem, choice.candidate)


def _open(
    directory: Path, manifest: Manifest, choice: Choice, row: Row, settings: Settings, stop: Event | None
) -> _ReadyGraph:
    graph, cache = choice.candidate.graph, cache_directory(directory, manifest, settings)
    options = engine_options(settings, choice.candidate.device, choice.candidate.mode, cache)
    engine = open_engine(choice.candidate.engine, directory / graph.file, graph.precision, options)
    try:
        return _ReadyGraph(choice, engine, _warm_up(engine, graph, manifest, row, settings, stop))
    except Exception:
        engine.close()
        raise


def _warm_up(
    engine: Engine, graph: Graph, manifest: Manifest, row: Row, settings: Settings, stop: Event | None
) -> dict[int, float]:
    """Run every batch size and check what comes out; batch size -> milliseconds."""
    batch_ms = {}
    for size in batch_sizes(settings.max_batch_size):
        if stop is not None and stop.is_set():
            raise LoadError(f"{manifest.name}: stopped while loading")
        batch = golden_batch(row, graph, size)
        engine.run(batch)  # the first run of a size allocates, and on a GPU chooses algorithms
        started = time.monotonic()
        outputs = engine.run(batch)
        batch_ms[size] = (time.monotonic() - started) * 1000
        check_golden(outputs, graph, manifest.num_classes, size)
    return batch_ms


def _start(name: str, graph: _ReadyGraph, settings: Settings) -> LoadedGraph:
    batcher = Batcher(
        name,
        graph.engine.run,
        graph.batch_ms,
        max_wait_ms=settings.max_wait_ms,
        queue_capacity=settings.queue_capacity,
    )
    choice = graph.choice
    return LoadedGraph(
        choice.candidate.graph.precision,
        graph.engine.info,
        choice.trials,
        choice.remembered,
        batcher,
        graph.engine,
    )
