"""`auto`: which engine, mode, device and precision runs a graph on this machine, in how many instances.

Candidates are tried one after another (trial.py); of those that are right the one with the least score wins.
The score is the geometric mean of an image's milliseconds alone and at load, so that twice as fast counts the
same in either. The CPU is tried only where nothing is right on a GPU.

int8 on a processor without VNNI is the case that this is made for: some kernels add pairs of products in 16
bits there and saturate, so that the same file answers otherwise. The golden check sees it, and the next best
wins.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from artifact.manifest import Graph, GraphKind, Manifest
from artifact.preprocess import Row
from engines.engine import Device
from engines.golden import golden_row
from engines.machine import num_gpus
from engines.registry import ENGINE_NAMES, installed_version
from engines.selection.candidates import (
    DEVICES,
    NothingRuns,
    candidates,
    counts_to_try,
    cpu_threads,
    engine_options,
    modes_to_try,
)
from engines.selection.remembered import Key, find_trials, keep_trials, trials_key
from engines.selection.trial import Candidate, EngineTrial, trial_of, try_candidate
from engines.settings import EngineSettings

logger = logging.getLogger("residuum")
NOT_TRIED = "not tried: a GPU is right"


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
    settings: EngineSettings,
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
    counts = counts_to_try(found[0], settings)
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
    settings: EngineSettings,
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
    settings: EngineSettings,
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


def _key(manifest: Manifest, kind: GraphKind, settings: EngineSettings, found: Sequence[Candidate]) -> Key:
    return trials_key(
        manifest, settings, cpu_threads(settings), [f"{kind}: {candidate}" for candidate in found]
    )


def _trials_file(directory: Path, manifest: Manifest, settings: EngineSettings) -> Path:
    return cache_directory(directory, manifest, settings) / "engines.json"


def try_graph(
    directory: Path, manifest: Manifest, graph: Graph, settings: EngineSettings
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
            for mode in modes_to_try(graph, engine, device, settings, set())
        ]
        usual = devices[-1] if engine == "openvino" else devices[0]
        found += worth or [Candidate(graph, engine, usual, None)]
    row = golden_row(directory, manifest)
    return tuple(_try_all(directory, manifest, found, row, settings, None, every_device=True))


def cache_directory(directory: Path, manifest: Manifest, settings: EngineSettings) -> Path:
    """Where what was measured and compiled for an artifact is kept; it need not exist."""
    if settings.engine_cache is not None:
        return settings.engine_cache / f"{directory.resolve().name}-{manifest.version}"
    return directory.resolve().with_name(f"{directory.resolve().name}.cache")


def _try_all(
    directory: Path,
    manifest: Manifest,
    found: Sequence[Candidate],
    row: Row,
    settings: EngineSettings,
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
        counts = counts_to_try(candidate, settings)
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
