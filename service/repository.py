"""Which models are loaded. Artifact on disk -> verified, warmed and checked engines behind batchers.

A model is served only after its files match their SHA-256, its graphs have run at every batch size, and the
golden image came out of each with the golden logits. It knows no HTTP but the error for an unknown name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import MANIFEST_FILE, Graph, Manifest, ManifestError, Precision, read_manifest
from models.preprocess import ImageError, preprocess
from service.batcher import Batcher, Row, batch_sizes
from service.engines import Engine, EngineError, EngineInfo
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.errors import UnknownModel
from service.settings import EMBEDDED, Settings

ENGINE = "onnxruntime"  # as manifests name it


class LoadError(Exception):
    """A model cannot be served; the message says which and why."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready: its description, and a batcher in front of each of its graphs."""

    manifest: Manifest
    precision: Precision  # of the classify graph
    engine: EngineInfo
    classify: Batcher
    introspect: Batcher | None  # None: the artifact has no introspect graph

    @property
    def name(self) -> str:
        return self.manifest.name

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what is queued, for `timeout_s` at most, and end the batchers."""
        for batcher in (self.classify, self.introspect):
            if batcher is not None:
                batcher.close(timeout_s)


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
        LoadError: whatever is wrong with it, or with the engine or device asked for.
    """
    try:
        manifest = read_manifest(directory)
        _check_numbers(manifest)
        row = _golden_row(directory, manifest)
        graph = _choose_graph(manifest, settings)
        engine = OnnxRuntimeEngine(directory / graph.file, settings.device, settings.threads)
        batch_ms = _warm_up(engine, graph, manifest, row, settings, stop)
        introspect_graph = manifest.graph("introspect")
        if introspect_graph is not None:
            row = {**row, "gates": np.ones(len(manifest.blocks), np.float32)}
            path = directory / introspect_graph.file
            introspect_engine = OnnxRuntimeEngine(path, engine.info.device, settings.threads)
            introspect_ms = _warm_up(introspect_engine, introspect_graph, manifest, row, settings, stop)
    except (ManifestError, EngineError) as error:
        raise LoadError(f"cannot load {directory}: {error}") from error
    classify = _batcher(f"{manifest.name}-classify", engine, batch_ms, settings)
    introspect = None
    if introspect_graph is not None:
        introspect = _batcher(f"{manifest.name}-introspect", introspect_engine, introspect_ms, settings)
    return LoadedModel(manifest, graph.precision, engine.info, classify, introspect)


def _check_numbers(manifest: Manifest) -> None:
    """The manifest must agree with itself on the number of classes."""
    counts = {len(manifest.labels), *(len(graph.golden_logits) for graph in manifest.graphs)}
    if counts != {manifest.num_classes}:
        raise LoadError(
            f"{manifest.name}: {manifest.num_classes} classes, but labels or golden logits differ"
        )


def _choose_graph(manifest: Manifest, settings: Settings) -> Graph:
    """The classify graph to serve: of the precision asked for, and one that our engine may run."""
    graphs = [graph for graph in manifest.graphs if graph.kind == "classify" and ENGINE in graph.engines]
    for graph in graphs:
        if settings.precision in ("auto", graph.precision):
            return graph
    there_is = ", ".join(graph.precision for graph in graphs) or "none"
    raise LoadError(
        f"{manifest.name} has no classify graph of precision {settings.precision} for {ENGINE}; "
        f"there is: {there_is}"
    )


def _golden_row(directory: Path, manifest: Manifest) -> Row:
    """The golden image as the graphs' input; it is preprocessed already, so this only decodes it."""
    spec = manifest.preprocessing
    try:
        data = (directory / manifest.golden_image).read_bytes()
        golden = preprocess(data, spec.model_copy(update={"resize": spec.crop}))
    except (OSError, ImageError) as error:
        raise LoadError(f"the golden image of {directory} cannot be read: {error}") from error
    if (golden.width, golden.height) != (spec.crop, spec.crop):
        raise LoadError(f"the golden image of {directory} is not {spec.crop} x {spec.crop}")
    return {"images": golden.pixels}


def _warm_up(
    engine: Engine, graph: Graph, manifest: Manifest, golden: Row, settings: Settings, stop: Event | None
) -> dict[int, float]:
    """Run every batch size and check what comes out; batch size -> milliseconds."""
    batch_ms = {}
    for size in batch_sizes(settings.max_batch_size):
        if stop is not None and stop.is_set():
            raise LoadError(f"{manifest.name}: stopped while loading")
        batch = {name: np.repeat(array[None], size, axis=0) for name, array in golden.items()}
        engine.run(batch)  # the first run of a size allocates, and on a GPU chooses algorithms
        started = time.monotonic()
        outputs = engine.run(batch)
        batch_ms[size] = (time.monotonic() - started) * 1000
        _check_golden(outputs, graph, manifest, size)
    return batch_ms


def _batcher(name: str, engine: Engine, batch_ms: dict[int, float], settings: Settings) -> Batcher:
    return Batcher(
        name,
        engine.run,
        batch_ms,
        max_wait_ms=settings.max_wait_ms,
        queue_capacity=settings.queue_capacity,
    )


def _check_golden(
    outputs: Mapping[str, NDArray[Any]], graph: Graph, manifest: Manifest, batch_size: int
) -> None:
    """Every row of logits must be the golden one; a NaN fails too."""
    what = f"{graph.file} at batch size {batch_size}"
    shape = (batch_size, manifest.num_classes)
    logits_NK = outputs.get("logits", np.empty(0))
    if logits_NK.shape != shape:
        raise LoadError(f"{what}: the logits have the shape {logits_NK.shape}, not {shape}")
    error = float(np.abs(logits_NK - np.asarray(graph.golden_logits)).max())
    if not error <= graph.golden_tolerance:
        raise LoadError(
            f"{what}: the golden logits differ by {error:.3g}, more than {graph.golden_tolerance:.3g}"
        )
