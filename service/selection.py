"""`auto`: which engine, mode, device and precision runs a graph on this machine, in how many instances.

Candidates are tried one after another (trying.py); of those that are right the one with the least score wins.
The score is the geometric mean of an image's milliseconds alone and at load, so that twice as fast counts the
same in either. The CPU is tried only where nothing is right on a GPU.

int8 on a processor without VNNI is the case that this is made for: some kernels add pairs of products in 16
bits there and saturate, so that the same file answers otherwise. The golden check sees it, and the next best
wins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from models.manifest import Graph, GraphKind, Manifest
from service.batch_sizes import batch_sizes
from service.batch_types import Row
from service.engines import (
    ENGINE_NAMES,
    Device,
    EngineName,
    EngineOptions,
    EngineUnavailable,
    installed_version,
    instance_counts,
    modes,
)
from service.engines.machine import MAX_AUTO_THREADS, auto_threads, num_gpus
from service.golden import golden_row
from service.schemas import EngineTrial
from service.settings import Settings
from service.trials import Key, find_trials, keep_trials, trials_key
from service.trying import Candidate, trial_of, try_candidate

logger = logging.getLogger("residuum")

DEVICES: tuple[Device, ...] = ("cuda", "cpu")
INT8 = ("int8", "int8-trt")
NOT_TRIED = "not tried: a GPU is right"


class NothingRuns(Exception):
    """No candidate is there, or none is right; the message says what there is, or why."""


@dataclass(frozen=True)
class Choice:
    """The candidate that won, and how all of them did; `remembered`: on an earlier start.

    `instances` is the number for load; above 1, an image alone is faster in a single one with all threads.
    """

    candidate: Candidate
    instances: int
    trials: tuple[EngineTrial, ...]
    remembered: bool = False


def choose(
    directory: Path,
    manifest: Manifest,
    kind: GraphKind,
    row: Row,
    settings: Settings,
    *,
    remember: bool = True,
    stop: Event | None = None,
    keep: bool = True,
) -> Choice:
    """The fastest right way to run the artifact's graph of that kind; one without alternative is not tried.

    Args:
        row: the golden row.
        remember: take the choice of an earlier start on the same machine with the same software.
        stop: give up when it is set.
        keep: what is measured, for the next start.

    Raises:
        NothingRuns: no candidate, none that is right, or stopped.
    """
    found = candidates(manifest, kind, settings)
    counts = _counts(found[0], settings)
    if len(found) == len(counts) == 1:
        return Choice(found[0], counts[0], (trial_of(found[0], instances=counts[0], chosen=True),))
    key = _key(manifest, kind, settings, found)
    if remember and (trials := find_trials(_trials_file(directory, manifest, settings), key)) is not None:
        for candidate in found:
            for trial in trials:
                if trial.chosen and candidate.is_of(trial):
                    return Choice(candidate, trial.instances, trials, remembered=True)
    tried = _try_all(directory, manifest, found, row, settings, stop)
    return _best(directory, manifest, kind, settings, found, tried, keep)


def next_best(
    directory: Path,
    manifest: Manifest,
    kind: GraphKind,
    row: Row,
    settings: Settings,
    failed: Choice,
    problem: str,
    *,
    stop: Event | None = None,
    keep: bool = True,
) -> Choice:
    """The best of the others, where the candidate of a choice just measured turned out to fail.

    Raises:
        NothingRuns: none of the others is right, or stopped.
    """
    found = candidates(manifest, kind, settings)
    failure = {"chosen": False, "score_ms": None, "problem": problem}
    known = [trial.model_copy(update=failure) if trial.chosen else trial for trial in failed.trials]
    tried = _try_all(directory, manifest, found, row, settings, stop, known=known)
    return _best(directory, manifest, kind, settings, found, tried, keep)


def _best(
    directory: Path,
    manifest: Manifest,
    kind: GraphKind,
    settings: Settings,
    found: Sequence[Candidate],
    tried: Sequence[EngineTrial],
    keep: bool,
) -> Choice:
    """The least score wins, and with `keep` is kept for the next start; else NothingRuns."""
    right = [(trial.score_ms, n) for n, trial in enumerate(tried) if trial.score_ms is not None]
    if not right:
        raise NothingRuns("; ".join(dict.fromkeys(trial.problem or "" for trial in tried)))
    winner = min(right)[1]
    trials = tuple(t.model_copy(update={"chosen": n == winner}) for n, t in enumerate(tried))
    _log(manifest, kind, found, trials)
    if keep:
        key = _key(manifest, kind, settings, found)
        keep_trials(_trials_file(directory, manifest, settings), key, trials)
    return Choice(found[winner], trials[winner].instances, trials)


def _key(manifest: Manifest, kind: GraphKind, settings: Settings, found: Sequence[Candidate]) -> Key:
    return trials_key(
        manifest, settings, cpu_threads(settings), [f"{kind}: {candidate}" for candidate in found]
    )


def _trials_file(directory: Path, manifest: Manifest, settings: Settings) -> Path:
    return cache_directory(directory, manifest, settings) / "engines.json"


def try_graph(
    directory: Path, manifest: Manifest, graph: Graph, settings: Settings
) -> tuple[EngineTrial, ...]:
    """How every installed engine that may run the graph does on this machine's devices, slow ones too."""
    devices: list[Device] = [d for d in DEVICES if settings.device in ("auto", d)] if num_gpus() else ["cpu"]
    found: list[Candidate] = []
    for engine in ENGINE_NAMES:
        if engine not in graph.engines or installed_version(engine) is None:
            continue
        worth = [
            Candidate(graph, engine, device, mode)
            for device in devices
            for mode in _modes(graph, engine, device, settings, set())
        ]
        usual = devices[-1] if engine == "openvino" else devices[0]
        found += worth or [Candidate(graph, engine, usual, None)]
    row = golden_row(directory, manifest)
    return tuple(_try_all(directory, manifest, found, row, settings, None, every_device=True))


def candidates(manifest: Manifest, kind: GraphKind, settings: Settings) -> list[Candidate]:
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
        for mode in _modes(graph, engine, device, settings, broken)
    ]
    if found:
        return found
    asked = [pair for pair in pairs if settings.precision != "auto" or pair[0] is pairs[0][0]]
    without_torch = [pair for pair in asked if pair[1] != "torch"]
    return [Candidate(graph, engine, settings.device, None) for graph, engine in without_torch or asked]


def _modes(
    graph: Graph, engine: EngineName, device: Device, settings: Settings, broken: set[EngineName]
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
    settings: Settings,
    device: Device,
    mode: str | None = None,
    cache: Path | None = None,
    instances: int = 1,
) -> EngineOptions:
    sizes = tuple(batch_sizes(settings.max_batch_size))
    threads = settings.threads or min(cpu_threads(settings), instances * MAX_AUTO_THREADS)
    return EngineOptions(device, mode, threads, sizes, cache, instances)


def cpu_threads(settings: Settings) -> int:
    """Of one graph, all its instances together."""
    return settings.threads or auto_threads(settings.workers)


def _counts(candidate: Candidate, settings: Settings) -> tuple[int, ...]:
    """The numbers of instances to try; the one that is set, where it is."""
    if settings.instances:
        return (settings.instances,)
    return instance_counts(candidate.engine, candidate.device, cpu_threads(settings))


def cache_directory(directory: Path, manifest: Manifest, settings: Settings) -> Path:
    """Where what was measured and compiled for an artifact is kept; it need not exist."""
    if settings.engine_cache is not None:
        return settings.engine_cache / f"{directory.resolve().name}-{manifest.version}"
    return directory.resolve().with_name(f"{directory.resolve().name}.cache")


def _pairs(manifest: Manifest, kind: GraphKind, settings: Settings) -> list[tuple[Graph, EngineName]]:
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


def _try_all(
    directory: Path,
    manifest: Manifest,
    found: Sequence[Candidate],
    row: Row,
    settings: Settings,
    stop: Event | None,
    *,
    known: Sequence[EngineTrial] = (),
    every_device: bool = False,
) -> list[EngineTrial]:
    """A trial of each candidate; `known` has those of an earlier round."""
    trials: list[EngineTrial] = []
    cache = cache_directory(directory, manifest, settings)
    for candidate in found:
        if stop is not None and stop.is_set():
            raise NothingRuns("stopped while loading")
        before = next((trial for trial in known if candidate.is_of(trial)), None)
        if before is not None and before.problem != NOT_TRIED:
            trials.append(before)
            continue
        gpu_is_right = any(trial.device == "cuda" and trial.score_ms is not None for trial in trials)
        if candidate.device == "cpu" and gpu_is_right and not every_device:
            trials.append(trial_of(candidate, problem=NOT_TRIED))
            continue
        options = engine_options(settings, candidate.device, candidate.mode, cache)
        counts = _counts(candidate, settings)
        trials.append(try_candidate(candidate, directory, manifest, row, options, counts))
    return trials


def _log(
    manifest: Manifest, kind: GraphKind, found: Sequence[Candidate], trials: Sequence[EngineTrial]
) -> None:
    for candidate, trial in zip(found, trials, strict=True):
        loaded = ", ".join(f"{ms:.2f} ms in {count}" for count, ms in trial.loaded_ms.items())
        words = [f"{trial.batch_ms[1]:.2f} ms alone, at load {loaded}"] if loaded else []
        words += [trial.problem] if trial.problem else []
        words += ["chosen"] if trial.chosen else []
        logger.info("%s %s: %s: %s", manifest.name, kind, candidate, ", ".join(words))
