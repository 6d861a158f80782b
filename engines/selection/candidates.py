"""The ways to run a graph that this machine should try: graph, engine, device and mode."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import ResiduumError
from artifact.manifest import Graph, GraphKind, Manifest
from engines.engine import Device, EngineName, EngineOptions, EngineUnavailable, batch_sizes
from engines.machine import MAX_AUTO_THREADS, auto_threads
from engines.registry import ENGINES, engines_for, installed_version, instance_counts, modes
from engines.settings import EngineSettings

logger = logging.getLogger("residuum")

DEVICES: tuple[Device, ...] = ("cuda", "cpu")
INT8 = ("int8", "int8-trt")


@dataclass(frozen=True)
class Candidate:
    """One way to run a graph; the mode None is the engine's usual one."""

    graph: Graph
    engine: EngineName
    device: Device
    mode: str | None

    def __str__(self) -> str:
        words = (self.graph.precision, self.engine, self.mode if self.mode != self.device else None)
        return " ".join(word for word in words if word) + f" on {self.device}"


class NothingRuns(ResiduumError):
    """No candidate exists, or none is right; the message lists what exists, or says why."""


def candidates(manifest: Manifest, kind: GraphKind, settings: EngineSettings) -> list[Candidate]:
    """Return what the artifact has, the settings allow and this machine should try; GPUs first.

    If nothing is worth trying, return what was asked for: it runs slowly, or says why it cannot.

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
        if device == "cuda" or settings.engine == engine or not ENGINES[engine].slow_import
        for mode in modes_to_try(graph, engine, device, settings, broken)
    ]
    if found:
        return found
    asked = [pair for pair in pairs if settings.precision != "auto" or pair[0] is pairs[0][0]]
    quick = [pair for pair in asked if not ENGINES[pair[1]].slow_import]
    return [Candidate(graph, engine, settings.device, None) for graph, engine in quick or asked]


def modes_to_try(
    graph: Graph, engine: EngineName, device: Device, settings: EngineSettings, broken: set[EngineName]
) -> tuple[str, ...]:
    """Return the modes worth timing; none of an engine that does not start, which is added to `broken`.

    Modes that take minutes to open are left out, unless the engine is asked for by name.

    Raises:
        EngineUnavailable: the engine asked for by name does not start.
    """
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
    if settings.engine == engine:
        return found
    return tuple(mode for mode in found if mode not in ENGINES[engine].modes_on_request)


def engine_options(
    settings: EngineSettings,
    device: Device,
    mode: str | None = None,
    cache: Path | None = None,
    instances: int = 1,
) -> EngineOptions:
    """Return the options with which an engine is opened under these settings."""
    sizes = tuple(batch_sizes(settings.max_batch_size))
    threads = settings.threads or min(cpu_threads(settings), instances * MAX_AUTO_THREADS)
    return EngineOptions(device, mode, threads, sizes, cache, instances)


def cpu_threads(settings: EngineSettings) -> int:
    """Return the CPU threads of one graph, all its instances together."""
    return settings.threads or auto_threads(settings.workers)


def counts_to_try(candidate: Candidate, settings: EngineSettings) -> tuple[int, ...]:
    """Return the numbers of instances to try, or only the number that is set."""
    if settings.instances:
        return (settings.instances,)
    return instance_counts(candidate.engine, candidate.device, cpu_threads(settings))


def _pairs(manifest: Manifest, kind: GraphKind, settings: EngineSettings) -> list[tuple[Graph, EngineName]]:
    """Return the graphs that the settings allow, each with every installed engine for its precision.

    If none of the engines is installed, return the pairs of the first one: opening it says how to install it.
    """
    graphs = [graph for graph in manifest.graphs if graph.kind == kind]
    wanted = [graph for graph in graphs if settings.precision in ("auto", graph.precision)]
    if kind != "classify":  # never int8; a precision that only classify has is not an error either
        wanted = [g for g in wanted or graphs if g.precision not in INT8]
    pairs = [
        (graph, name)
        for graph in wanted
        for name in engines_for(graph.precision)
        if settings.engine in ("auto", name)
    ]
    if not pairs:
        raise NothingRuns(
            f"{manifest.name} has no {kind} graph of precision {settings.precision} for engine "
            f"{settings.engine}; there is: {_describe(graphs)} (`residuum export --precision` adds others)"
        )
    installed = [pair for pair in pairs if installed_version(pair[1]) is not None]
    return installed or [pair for pair in pairs if pair[1] == pairs[0][1]]


def _describe(graphs: Iterable[Graph]) -> str:
    return ", ".join(f"{g.precision} ({', '.join(engines_for(g.precision))})" for g in graphs) or "none"
