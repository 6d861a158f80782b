"""The ways to run a graph that this machine should try: graph, engine, device and mode."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from artifact.errors import ResiduumError
from artifact.manifest import Graph, GraphKind, Manifest
from engines.engine import Device, EngineName, EngineOptions, EngineUnavailable, batch_sizes
from engines.machine import MAX_AUTO_THREADS, auto_threads
from engines.registry import ENGINE_NAMES, installed_version, instance_counts, modes
from engines.selection.trial import Candidate
from engines.settings import EngineSettings

logger = logging.getLogger("residuum")

DEVICES: tuple[Device, ...] = ("cuda", "cpu")
INT8 = ("int8", "int8-trt")


class NothingRuns(ResiduumError):
    """No candidate is there, or none is right; the message says what there is, or why."""


def candidates(manifest: Manifest, kind: GraphKind, settings: EngineSettings) -> list[Candidate]:
    """All that the artifact has, the settings allow and this machine should try, those on a GPU first.

    Where nothing is worth trying, what was asked for is: it runs slowly, or says why it cannot.

    Raises:
        NothingRuns: the artifact has no such graph for such an engine.
        EngineUnavailable: the engine asked for by name is not installed, or does not start.
    """
    pairs = _pairs(manifest, kind, settings)
    broken: set[EngineName] = set()
    found = [
        Candidate(graph, engine, device, mode)
        for device in DEVICES
        if settings.device in ("auto", device)
        for graph, engine in pairs
        if engine != "torch" or device == "cuda" or settings.engine == "torch"
        for mode in modes_to_try(graph, engine, device, settings, broken)
    ]
    if found:
        return found
    asked = [pair for pair in pairs if settings.precision != "auto" or pair[0] is pairs[0][0]]
    without_torch = [pair for pair in asked if pair[1] != "torch"]
    return [Candidate(graph, engine, settings.device, None) for graph, engine in without_torch or asked]


def modes_to_try(
    graph: Graph, engine: EngineName, device: Device, settings: EngineSettings, broken: set[EngineName]
) -> tuple[str, ...]:
    """`modes`; none where the engine does not start, and no compiling for minutes unless it is asked for."""
    if engine in broken:
        return ()
    try:
        found = modes(engine, graph.precision, engine_options(settings, device))
    except EngineUnavailable as error:
        if settings.engine == engine:
            raise
        logger.warning("%s is left out: %s", engine, error)
        broken.add(engine)
        return ()
    return found if settings.engine == engine else tuple(mode for mode in found if mode != "compile")


def engine_options(
    settings: EngineSettings,
    device: Device,
    mode: str | None = None,
    cache: Path | None = None,
    instances: int = 1,
) -> EngineOptions:
    sizes = tuple(batch_sizes(settings.max_batch_size))
    threads = settings.threads or min(cpu_threads(settings), instances * MAX_AUTO_THREADS)
    return EngineOptions(device, mode, threads, sizes, cache, instances)


def cpu_threads(settings: EngineSettings) -> int:
    """Of one graph, all its instances together."""
    return settings.threads or auto_threads(settings.workers)


def counts_to_try(candidate: Candidate, settings: EngineSettings) -> tuple[int, ...]:
    """The numbers of instances to try; the one that is set, where it is."""
    if settings.instances:
        return (settings.instances,)
    return instance_counts(candidate.engine, candidate.device, cpu_threads(settings))


def _pairs(manifest: Manifest, kind: GraphKind, settings: EngineSettings) -> list[tuple[Graph, EngineName]]:
    """Graphs with the installed engines that may run them, as the settings allow, in the artifact's order."""
    graphs = [graph for graph in manifest.graphs if graph.kind == kind]
    wanted = [graph for graph in graphs if settings.precision in ("auto", graph.precision)]
    if kind != "classify":  # never int8; and one precision less than classify has is no reason to fail
        wanted = [g for g in wanted or graphs if g.precision not in INT8]
    names = [name for name in ENGINE_NAMES if settings.engine in ("auto", name)]
    pairs = [(graph, name) for graph in wanted for name in names if name in graph.engines]
    if not pairs:
        raise NothingRuns(
            f"{manifest.name} has no {kind} graph of precision {settings.precision} for engine "
            f"{settings.engine}; there is: {_describe(graphs)} (`residuum export --precision` adds others)"
        )
    there = [pair for pair in pairs if installed_version(pair[1]) is not None]
    return there or [pair for pair in pairs if pair[1] == pairs[0][1]]  # to be told how to install it


def _describe(graphs: Iterable[Graph]) -> str:
    return ", ".join(f"{graph.precision} ({', '.join(graph.engines)})" for graph in graphs) or "none"
