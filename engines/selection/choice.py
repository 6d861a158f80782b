"""`auto`: which engine, mode, device and precision runs a graph on this machine, in how many instances.

Every candidate is tried (trial.py). Of those whose answer is right, the one with the least score wins. The
score is the geometric mean of the milliseconds of a single image and those of an image under load, so that
twice as fast counts the same in both. The CPU is tried only if no GPU gives a right answer.

The main case is int8 on a processor without VNNI. There some kernels add pairs of products in 16 bits, which
saturates, and the same file gives other logits. The golden check finds that, and the next best wins.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from artifact.manifest import Graph
from engines.engine import Device
from engines.machine import num_gpus
from engines.registry import ENGINES, engines_for, installed_version
from engines.selection.candidates import (
    DEVICES,
    Candidate,
    NothingRuns,
    candidates,
    counts_to_try,
    engine_options,
    modes_to_try,
)
from engines.selection.remembered import find_trials, keep_trials
from engines.selection.source import S, Source
from engines.selection.trial import EngineTrial, trial_of, try_candidate

logger = logging.getLogger("residuum")
NOT_TRIED = "not tried: a GPU is right"


@dataclass(frozen=True)
class Choice:
    """The candidate that won, and a trial of every candidate.

    Attributes:
        instances: how many instances to run under load. Where it is above 1, a single image is usually
            faster in an engine of one instance with all threads; see `saved_alone_ms`.
        remembered: the choice was measured on an earlier start.
    """

    candidate: Candidate
    instances: int
    trials: tuple[EngineTrial, ...]
    remembered: bool = False

    @property
    def saved_alone_ms(self) -> float:
        """How much sooner a single image is done in an engine with all threads; infinity if not timed."""
        trial = next(trial for trial in self.trials if trial.chosen)
        if 1 not in trial.batch_ms or self.instances not in trial.loaded_ms:
            return inf
        return trial.loaded_ms[self.instances] * self.instances - trial.batch_ms[1]


def choose(source: Source[S], *, remember: bool = True) -> Choice:
    """Return the fastest right way to run the source's graph; a sole candidate is returned untried.

    Args:
        remember: reuse the choice of an earlier start on the same machine with the same software.

    Raises:
        NothingRuns: there is no candidate, none is right, or loading was stopped.
    """
    found = candidates(source.manifest, source.kind, source.settings)
    counts = counts_to_try(found[0], source.settings)
    if len(found) == len(counts) == 1:
        return Choice(found[0], counts[0], (trial_of(found[0], instances=counts[0], chosen=True),))
    if remember and (trials := find_trials(source, found)) is not None:
        for candidate in found:
            for trial in trials:
                if trial.chosen and trial.is_of(candidate):
                    return Choice(candidate, trial.instances, trials, remembered=True)
    return _best(source, found, _try_all(source, found))


def next_best(source: Source[S], failed: Choice, problem: str) -> Choice:
    """Return the best of the other candidates, after the chosen one failed for the reason `problem`.

    Raises:
        NothingRuns: none of the others is right, or loading was stopped.
    """
    found = candidates(source.manifest, source.kind, source.settings)
    failure = {"chosen": False, "score_ms": None, "problem": problem}
    known = [trial.model_copy(update=failure) if trial.chosen else trial for trial in failed.trials]
    return _best(source, found, _try_all(source, found, known=known))


def try_graph(source: Source[S], graph: Graph) -> tuple[EngineTrial, ...]:
    """Return a trial of every installed engine that may run `graph`, on every device of this machine."""
    settings = source.settings
    devices: list[Device] = [d for d in DEVICES if settings.device in ("auto", d)] if num_gpus() else ["cpu"]
    found: list[Candidate] = []
    for engine in engines_for(graph.precision):
        if installed_version(engine) is None:
            continue
        worth = [
            Candidate(graph, engine, device, mode)
            for device in devices
            for mode in modes_to_try(graph, engine, device, settings, set())
        ]
        able = [device for device in devices if graph.precision in ENGINES[engine].precisions(device)]
        found += worth or [Candidate(graph, engine, (able or devices)[0], None)]
    return tuple(_try_all(source, found, every_device=True))


def _best(source: Source[S], found: Sequence[Candidate], tried: Sequence[EngineTrial]) -> Choice:
    """Return the candidate of the least score, and store the trials where the source says so.

    Raises:
        NothingRuns: none of them is right.
    """
    right = [(trial.score_ms, n) for n, trial in enumerate(tried) if trial.score_ms is not None]
    if not right:
        raise NothingRuns("; ".join(dict.fromkeys(trial.problem or "" for trial in tried)))
    winner = min(right)[1]
    trials = tuple(t.model_copy(update={"chosen": n == winner}) for n, t in enumerate(tried))
    _log(source, found, trials)
    if source.keep:
        keep_trials(source, found, trials)
    return Choice(found[winner], trials[winner].instances, trials)


def _try_all(
    source: Source[S],
    found: Sequence[Candidate],
    *,
    known: Sequence[EngineTrial] = (),
    every_device: bool = False,
) -> list[EngineTrial]:
    """Return a trial of each candidate; those in `known` are not repeated.

    The CPU is not tried once a GPU is right, unless `every_device` asks for it.

    Raises:
        NothingRuns: loading was stopped.
    """
    trials: list[EngineTrial] = []
    for candidate in found:
        if source.stopped:
            raise NothingRuns("stopped while loading")
        before = next((trial for trial in known if trial.is_of(candidate)), None)
        if before is not None and before.problem != NOT_TRIED:
            trials.append(before)
            continue
        gpu_is_right = any(trial.device == "cuda" and trial.score_ms is not None for trial in trials)
        if candidate.device == "cpu" and gpu_is_right and not every_device:
            trials.append(trial_of(candidate, problem=NOT_TRIED))
            continue
        options = engine_options(source.settings, candidate.device, candidate.mode, source.cache)
        trials.append(try_candidate(candidate, source, options, counts_to_try(candidate, source.settings)))
    return trials


def _log(source: Source[S], found: Sequence[Candidate], trials: Sequence[EngineTrial]) -> None:
    for candidate, trial in zip(found, trials, strict=True):
        loaded = ", ".join(f"{ms:.2f} ms in {count}" for count, ms in trial.loaded_ms.items())
        words = [f"{trial.batch_ms[1]:.2f} ms alone, at load {loaded}"] if loaded else []
        words += [trial.problem] if trial.problem else []
        words += ["chosen"] if trial.chosen else []
        logger.info("%s %s: %s: %s", source.manifest.name, source.kind, candidate, ", ".join(words))
