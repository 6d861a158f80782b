"""Time an artifact's graphs on every engine of this machine: print the theory first, then the table.

    residuum bench [--model NAME]... [--seconds S] [--batch N]... [--quick]         # make bench

The logits of every row are checked before it is timed; a row with wrong logits gets no speed. All rows of a
model are timed in short slices, in turn, for several rounds, so that other work on the machine affects all
rows alike. A ratio is the median of the ratios of the rounds. The last line printed is JSON.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from artifact.errors import ResiduumError
from artifact.manifest import Graph, GraphKind, Manifest, Precision, read_manifest
from artifact.store import EMBEDDED, find_artifact
from benchmarks.aims import judge, print_aims
from benchmarks.subjects import Check, FloatInput, Inputs, default_artifacts
from benchmarks.theory import Cost, Machine, cost_of, print_machine, print_theory, this_machine
from engines.engine import Device, Engine, EngineError, EngineName, EngineOptions, EngineUnavailable
from engines.machine import num_gpus
from engines.registry import BASELINE, ENGINES, engines_for, modes, open_engine
from service.settings import Settings

ROUNDS = 5
COLUMNS = (
    ("p50_ms", 9, 2), ("p99_ms", 9, 2), ("images_per_s", 10, 1),
    ("ratio_to_ort_fp32", 11, 2), ("ratio_to_classify", 11, 2),
)  # fmt: skip
KINDS: tuple[str, ...] = get_args(GraphKind)
BATCHES = {"cpu": (1, 8), "cuda": (1, 8, 128)}


class BenchError(ResiduumError):
    """The arguments cannot be used."""


@dataclass
class Row:
    """One graph on one engine with one batch size; `facts` is its part of the JSON."""

    engine: Engine
    inputs: Inputs
    facts: dict[str, Any]
    times_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # images a second, from the median run of each round

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(self.facts[name] for name in ("graph", "precision", "engine", "mode", "batch"))


def bench_engines(
    models: Sequence[str],
    settings: Settings,
    *,
    seconds: float,
    batches: Sequence[int] = (),
    quick: bool = False,
) -> dict[str, Any]:
    """Measure each model for about `seconds` a row; print and return the figures.

    Args:
        models: names or paths; if empty, the embedded model and a ResNet-50 with random weights.
        settings: `engine`, `precision` and `device` select rows; ONNX Runtime in fp32 is always included.
        batches: batch sizes; if empty, the usual ones of the device.
        quick: measure a quarter of the time, and by default only the embedded model.

    Raises:
        BenchError: `seconds` or a batch size is not positive.
    """
    if not 0 < seconds < math.inf:
        raise BenchError(f"--seconds {seconds:g}: must be above 0")
    for size in batches:
        if size < 1:
            raise BenchError(f"--batch {size}: must be 1 or more")
    device = settings.device if settings.device != "auto" else "cuda" if num_gpus() else "cpu"
    if not models:
        models = [EMBEDDED] if quick else [str(path) for path in default_artifacts(device)]
    machine = this_machine(device, settings.threads)
    print_machine(machine)
    documents = []
    for name in models:
        directory = find_artifact(name, settings.artifacts)
        sizes = tuple(batches) or BATCHES[device]
        documents.append(bench_model(directory, settings, machine, seconds / 4 if quick else seconds, sizes))
    document = {"machine": machine.as_json(), "seconds": seconds, "rounds": ROUNDS, "models": documents}
    print(json.dumps(document))
    return document


def bench_model(
    directory: Path, settings: Settings, machine: Machine, seconds: float, batches: Sequence[int]
) -> dict[str, Any]:
    """Print the theory, the rows and the aims of one artifact; return them."""
    manifest = read_manifest(directory)
    costs = {g.precision: cost_of(directory / g.file) for g in manifest.graphs if g.kind == "classify"}
    pixels, num_parameters = manifest.preprocessing.crop, manifest.provenance.num_parameters
    print(
        f"\n{manifest.name} {manifest.version}: {num_parameters / 1e6:.2f} M parameters, "
        f"{costs['fp32'].macs / 1e6:.1f} M multiply-accumulates an image of {pixels} pixels"
    )
    print_theory(costs, machine, max(batches))
    with ExitStack() as stack:
        rows, left_out = open_rows(directory, manifest, settings, machine.device, batches, stack)
        time_in_turn([row for row in rows if row.facts["right"]], seconds)
        facts = [summarise(row, rows, costs) for row in rows]
    print_table(facts)
    for reason in left_out:
        print(f"left out: {reason}")
    judged = judge(manifest.architecture, pixels, facts, machine)
    print_aims(judged)
    return {
        "model": manifest.name,
        "version": manifest.version,
        "architecture": manifest.architecture,
        "pixels": pixels,
        "num_parameters": num_parameters,
        "macs": costs["fp32"].macs,
        "theory": {name: vars(cost) for name, cost in costs.items()},
        "rows": facts,
        "left_out": left_out,
        "aims": judged,
    }


def candidates(
    manifest: Manifest, settings: Settings, device: str, batches: Sequence[int]
) -> tuple[list[tuple[Graph, EngineName, EngineOptions]], list[str]]:
    """Return every graph, engine and mode worth timing, fp32 first; and why engines are left out."""
    found = []
    left_out: dict[str, None] = {}
    for graph in sorted(manifest.graphs, key=lambda g: (g.precision != "fp32", KINDS.index(g.kind))):
        for name in engines_for(graph.precision):
            baseline = name == BASELINE and graph.precision == "fp32"
            asked = settings.engine in ("auto", name) and settings.precision in ("auto", graph.precision)
            if not (asked or baseline):
                continue
            options = EngineOptions(cast(Device, device), None, settings.threads, tuple(batches))
            try:
                worth = modes(name, graph.precision, options)
            except EngineUnavailable as error:
                left_out[str(error)] = None
                continue
            found += [(graph, name, replace(options, mode=mode)) for mode in worth]
    return found, list(left_out)


def open_rows(
    directory: Path,
    manifest: Manifest,
    settings: Settings,
    device: str,
    batches: Sequence[int],
    stack: ExitStack,
) -> tuple[list[Row], list[str]]:
    """Open and check every engine once; return a row for each batch size, and what is left out.

    `stack` closes the engines.
    """
    work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    check = Check(directory, manifest)
    rows: list[Row] = []
    found, left_out = candidates(manifest, settings, device, batches)
    for graph, name, options in found:
        what = f"{graph.kind} {graph.precision} on {name} {options.mode}"
        print(f"opening {what} ...", file=sys.stderr, flush=True)
        variants: list[tuple[str, Path, FloatInput | None]] = [(graph.kind, directory / graph.file, None)]
        try:
            if graph.kind == "classify" and not ENGINES[name].slow_import:
                cut = FloatInput(directory / graph.file, work / f"{len(rows)}.onnx")
                variants.append(("float input", cut.path, cut))
            for kind, path, cut_here in variants:
                engine = stack.enter_context(closing(open_engine(name, path, graph.precision, options)))
                for size in batches:
                    facts = {"graph": kind, "precision": graph.precision, "engine": name}
                    facts |= {"version": engine.info.version, "device": engine.info.device}
                    facts |= {"mode": options.mode, "batch": size} | check(engine, graph, size, cut_here)
                    rows.append(Row(engine, check.inputs(graph, size, cut_here), facts))
        except EngineError as error:
            left_out.append(f"{what}: {error}")
    return rows, left_out


def time_in_turn(rows: Sequence[Row], seconds: float) -> None:
    """Time one slice of every row in each of ROUNDS rounds; stop early if that takes far too long.

    A slice begins with a run that is not counted, because the caches hold the data of the row before. It is
    left out if one run is longer than a slice.
    """
    slice_ms, deadline = 1000 * seconds / ROUNDS, time.monotonic() + 2.5 * seconds * len(rows)
    for done in range(ROUNDS):
        if done and time.monotonic() > deadline:
            print(f"slow: {done} rounds of {ROUNDS}", file=sys.stderr)
            return
        for row in rows:
            if not row.times_ms or row.times_ms[-1] < slice_ms:
                row.engine.run(row.inputs)
            times_ms: list[float] = []
            while sum(times_ms) < slice_ms:
                started = time.perf_counter()
                row.engine.run(row.inputs)
                times_ms.append((time.perf_counter() - started) * 1000)
            row.times_ms += times_ms
            row.rates.append(1000 * row.facts["batch"] / statistics.median(times_ms))


def summarise(row: Row, rows: Sequence[Row], costs: Mapping[Precision, Cost]) -> dict[str, Any]:
    """Return the row's figures; None for a figure whose row, or reference row, was not timed."""
    kind, precision, name, mode, size = row.key
    base = kind if kind in KINDS else "classify"
    to_ort = next((r for r in rows if r.key[:3] == (base, "fp32", BASELINE) and r.key[4] == size), None)
    to_classify = next((r for r in rows if r.key == ("classify", precision, name, mode, size)), None)
    rate = statistics.median(row.rates) if row.rates else None
    return row.facts | {
        "p50_ms": statistics.median(row.times_ms) if row.times_ms else None,
        "p99_ms": float(np.percentile(row.times_ms, 99)) if row.times_ms else None,
        "images_per_s": rate,
        "gmacs_per_s": None if rate is None else rate * costs["fp32"].macs / 1e9,
        "ratio_to_ort_fp32": _ratio(row, to_ort),
        "ratio_to_classify": _ratio(row, to_classify),
    }


def _ratio(row: Row, other: Row | None) -> float | None:
    if other is None or not row.rates or not other.rates:
        return None
    return statistics.median(a / b for a, b in zip(row.rates, other.rates, strict=True))


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'graph':<12}{'precision':<10}{'engine':<12}{'mode':<11}{'batch':>5}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'images/s':>10}{'x ORT fp32':>11}{'x classify':>11}{'max |dlogit|':>13}{'top-1':>7}"
    )
    for row in rows:
        cells = [
            f"{'-':>{width}}" if row[name] is None else f"{row[name]:>{width}.{digits}f}"
            for name, width, digits in COLUMNS
        ]
        if not row["right"]:
            cells[2] = f"{'wrong':>10}"
        print(
            f"{row['graph']:<12}{row['precision']:<10}{row['engine']:<12}{row['mode']:<11}{row['batch']:>5}"
            f"{''.join(cells)}{row['max_abs_delta_logit']:>13.2g}{100 * row['top1_agreement']:>6.0f}%"
        )
