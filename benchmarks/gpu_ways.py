"""The ways to run a graph that the benchmark of a GPU compares: open one, check its answers, time it.

A way that is not available on the machine gets a row with the reason. Rows are dictionaries for the JSON.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifact.manifest import Graph, Precision, read_manifest
from benchmarks.subjects import Check, Inputs
from engines.engine import Device, Engine, EngineError, EngineOptions, EngineUnavailable
from engines.registry import open_engine


@dataclass(frozen=True)
class Way:
    """An engine in a mode.

    Attributes:
        precisions: those that it runs.
        recorded: batch sizes are given to the engine when it is opened, which records CUDA graphs for them.
        compiles: opening takes up to a minute for each batch size.
    """

    title: str
    engine: str
    mode: str | None
    precisions: tuple[Precision, ...]
    recorded: bool = True
    compiles: bool = False


WAYS: dict[Device, tuple[Way, ...]] = {
    "cuda": (
        Way("ONNX Runtime CUDA", "onnxruntime", "cuda", ("fp32", "fp16")),
        Way("ONNX Runtime TensorRT", "onnxruntime", "tensorrt", ("fp16", "int8-trt")),
        Way("torch eager", "torch", "eager", ("fp32", "fp16", "bf16"), recorded=False),
        Way("torch CUDA graphs", "torch", "eager", ("fp32", "fp16", "bf16")),
        Way("torch compiled", "torch", "compile", ("fp32", "fp16", "bf16"), compiles=True),
    ),
    "cpu": (
        Way("ONNX Runtime CPU", "onnxruntime", "cpu", ("fp32", "fp16")),
        Way("OpenVINO", "openvino", None, ("fp32", "fp16")),
        Way("torch eager", "torch", "eager", ("fp32", "fp16", "bf16")),
    ),
}


class Subject:
    """An artifact and its check: fresh images, of which ONNX Runtime on the CPU computes the right logits."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.manifest = directory, read_manifest(directory)
        self.check = Check(directory, self.manifest)

    def graph(self, kind: str, precision: str) -> Graph | None:
        return next((g for g in self.manifest.graphs if (g.kind, g.precision) == (kind, precision)), None)


def opened(
    way: Way, graph: Path, precision: Precision, device: Device, sizes: Sequence[int], cache: Path
) -> tuple[Engine, float]:
    """Return the engine over a graph, and the seconds that opening took.

    Raises:
        EngineError, EngineUnavailable: see `engines.registry.open_engine`.
    """
    started = time.perf_counter()
    options = EngineOptions(device, way.mode, batch_sizes=tuple(sizes) if way.recorded else (), cache=cache)
    return open_engine(way.engine, graph, precision, options), time.perf_counter() - started


def rows_of(
    way: Way,
    subject: Subject,
    graph: Graph,
    device: Device,
    sizes: Sequence[int],
    seconds: float,
    cache: Path,
) -> Iterator[dict[str, Any]]:
    """Yield a row for each batch size: parity on fresh inputs, and for `seconds` above 0 times.

    `right`: the golden image's logits are within its tolerance; a row that is not right is not timed.
    `fresh_right`: those of fresh images are within the same tolerance of fp32's, for other precisions than
    int8. An engine that does not open gives one row, with the reason.
    """
    facts: dict[str, Any] = {"way": way.title, "engine": way.engine, "mode": way.mode}
    facts |= {"graph": graph.kind, "precision": graph.precision}
    try:
        engine, open_s = opened(way, subject.directory / graph.file, graph.precision, device, sizes, cache)
    except EngineUnavailable as error:
        yield facts | {"unavailable": str(error)}
        return
    except EngineError as error:
        yield facts | {"error": str(error)}
        return
    facts |= {"version": engine.info.version, "device": engine.info.device, "open_s": round(open_s, 2)}
    with closing(engine):
        for size in sizes:
            row = facts | {"batch": size}
            try:
                row |= subject.check(engine, graph, size, None)
                row["fresh_right"] = (
                    graph.precision == "int8-trt" or row["max_abs_delta_logit"] <= graph.golden_tolerance
                )
                if seconds and row["right"]:
                    inputs = subject.check.inputs(graph, size, None)
                    row |= time_runs(engine, inputs, size, seconds)
                    if engine.info.device == "cuda":
                        row["on_device"] = device_times(engine, inputs)
            except EngineError as error:  # such as too little memory for this size
                row["error"] = str(error)
            yield row


def with_ratios(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Add to each timed row `ratio_to_classify`: its speed divided by that of classify in the same way."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["way"], row["precision"], row["batch"]

    timed = [row for row in rows if row.get("images_per_s")]
    base = {key(row): row["images_per_s"] for row in timed if row["graph"] == "classify"}
    for row in timed:
        other = base.get(key(row))
        row["ratio_to_classify"] = None if other is None else round(row["images_per_s"] / other, 3)
    return rows


def time_runs(engine: Engine, inputs: Inputs, size: int, seconds: float) -> dict[str, float]:
    """Return milliseconds a run, copies to and from the device included, and images a second."""
    for _ in range(3):
        engine.run(inputs)
    times_ms: list[float] = []
    while sum(times_ms) < 1000 * seconds or len(times_ms) < 5:
        started = time.perf_counter()
        engine.run(inputs)
        times_ms.append((time.perf_counter() - started) * 1000)
    median = statistics.median(times_ms)
    return {
        "p50_ms": round(median, 4),
        "p99_ms": round(float(np.percentile(times_ms, 99)), 4),
        "images_per_s": round(1000 * size / median, 1),
    }


def device_times(engine: Engine, inputs: Inputs, runs: int = 5) -> dict[str, Any]:
    """Return the milliseconds a run that the GPU spends in kernels and in copies, by torch's profiler.

    The profiler sees all of the process, also what other libraries than torch launch.
    """
    try:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(runs):
                engine.run(inputs)
        sums = {"copies_ms": 0.0, "kernels_ms": 0.0}
        for event in profiled.key_averages():
            kind = "copies_ms" if event.key.startswith(("Memcpy", "Memset")) else "kernels_ms"
            sums[kind] += event.self_device_time_total / 1000 / runs
    except Exception as error:  # a measurement beside the others: it must not take them along
        return {"error": f"{type(error).__name__}: {error}"}
    return {name: round(value, 4) for name, value in sums.items()}


def ways(device: Device, precision: str, *, compiled: bool = False) -> list[Way]:
    """Return the ways of a device that run a precision; those that compile alone, or all but those."""
    return [way for way in WAYS[device] if precision in way.precisions and way.compiles == compiled]


def fastest(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the timed row with the most images a second, or None."""
    timed = [row for row in rows if row.get("images_per_s")]
    return max(timed, key=lambda row: row["images_per_s"], default=None)


def failures(rows: Sequence[Mapping[str, Any]], *, may_be_none: bool = False) -> list[str]:
    """Return which rows have wrong answers or errors, and whether nothing ran.

    What is not available is no failure, unless nothing else ran and not `may_be_none`.
    """
    nothing = [] if may_be_none or any("right" in row for row in rows) else ["nothing ran"]
    return nothing + [
        f"{row['way']} {row.get('graph', '')} {row.get('precision', '')} batch {row.get('batch', '-')}: "
        + str(row.get("error") or f"logits differ by {row.get('max_abs_delta_logit')}")
        for row in rows
        if "error" in row or not row.get("right", True) or not row.get("fresh_right", True)
    ]
