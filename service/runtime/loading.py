"""Artifact on disk -> a model that may be served: verified, warmed and checked engines behind batchers.

A model is served only after its files match their SHA-256, its graphs have run at every batch size, and each
graph has given the golden logits for the golden image. This module knows no HTTP, and not which models a
server has.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from math import inf
from pathlib import Path
from threading import Event

from artifact.manifest import (
    GraphKind,
    Manifest,
    ManifestError,
    read_manifest,
)
from engines.engine import EngineError
from engines.golden import WrongAnswer, golden_row
from engines.selection.candidates import NothingRuns
from engines.selection.source import Source
from service.batching.batcher import Batcher
from service.runtime.model import Devices, LoadedGraph, LoadedModel
from service.runtime.opening import GRAPH_KINDS, LoadError, Opened, make_ready
from service.settings import Settings
from service.telemetry.metrics import GraphMeter, Metrics

logger = logging.getLogger("residuum")


def load_model(
    directory: Path,
    settings: Settings,
    stop: Event | None = None,
    *,
    devices: Devices | None = None,
    metrics: Metrics | None = None,
    keep: bool = True,
) -> LoadedModel:
    """Return the model of the artifact in `directory`: read, verified, warmed up and checked.

    Args:
        stop: set when loading should end early.
        devices: the server's; by default the model has its own.
        keep: store the choice of engines for the next start; False if it is measured beside other work.

    Raises:
        LoadError: the artifact cannot be served, or not with the engine, precision or device asked for.
    """
    opened: dict[GraphKind, Opened] = {}
    sources: dict[GraphKind, Source[Settings]] = {}
    with ExitStack() as stack:  # closes the graphs that are open if a later one fails
        try:
            manifest = read_manifest(directory)
            _check_numbers(manifest)
            row = golden_row(directory, manifest)
            for kind in GRAPH_KINDS:
                if kind == "classify" or manifest.graph(kind) is not None:
                    sources[kind] = Source(directory, manifest, kind, row, settings, stop, keep)
                    opened[kind] = make_ready(sources[kind])
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
    opened: Opened, settings: Settings, devices: Devices, meter: GraphMeter, before: LoadedGraph | None
) -> Batcher:
    """Start the batcher of a graph; `before` has priority, and waits for no longer batch than its own."""
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
    """Raise LoadError unless labels and golden logits have the manifest's number of classes."""
    counts = {len(manifest.labels), *(len(graph.golden_logits) for graph in manifest.graphs)}
    if counts != {manifest.num_classes}:
        raise LoadError(
            f"{manifest.name}: {manifest.num_classes} classes, but labels or golden logits differ"
        )
