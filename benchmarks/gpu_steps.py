"""Steps of benchmarks/gpu.py: machine, engines, ResNet-50 by batch size, introspection, compiled graphs."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from artifact.store import EMBEDDED, find_artifact
from benchmarks.aims import judge
from benchmarks.gpu import Context
from benchmarks.gpu_subject import directory_of
from benchmarks.gpu_ways import Subject, failures, rows_of, ways, with_ratios
from benchmarks.theory import cost_of, this_machine
from engines.engine import Device
from engines.registry import ENGINES, installed_version

GIB = 2**30
PRECISION = "fp16"
KINDS = ("classify", "introspect", "attribute")


def environment(context: Context) -> dict[str, Any]:
    """Describe the machine and its software, and measure the ceilings: copies and matrix products."""
    import onnxruntime

    machine = this_machine(context.device)
    document: dict[str, Any] = {
        "machine": machine.as_json(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "providers": onnxruntime.get_available_providers(),
        "engines": {name: installed_version(name) for name in ENGINES},
        "failures": [],
    }
    context.keep("environment", document)
    if context.device == "cuda":
        if not torch.cuda.is_available():
            return document | {"failures": ["torch sees no GPU"]}
        from engines.onnxruntime import why_no_cuda, why_no_tensorrt

        document |= {"why_no_cuda": why_no_cuda(), "why_no_tensorrt": why_no_tensorrt()}
        document |= {"ceilings": _ceilings(torch.device("cuda"), 2 * GIB, 8192)}
    else:
        document |= {"ceilings": _ceilings(torch.device("cpu"), GIB // 16, 512)}
    return document


def engines(context: Context) -> dict[str, Any]:
    """Open every way over every graph of the embedded model; compare on fresh inputs, and time."""
    sizes = (1, 2) if context.quick else (1, 8)
    served = Subject(find_artifact(EMBEDDED, Path()))
    rows: list[dict[str, Any]] = []
    for way in ways(_device(context), "fp32"):
        for kind in KINDS:
            if graph := served.graph(kind, "fp32"):
                rows += rows_of(
                    way, served, graph, _device(context), sizes, _seconds(context), _cache(context)
                )
                context.keep("engines", {"rows": rows})
    return {"rows": rows, "failures": failures(rows)}


def resnet50(context: Context) -> dict[str, Any]:
    """Time classify in fp16 by batch size, in every way that need not be compiled."""
    sizes = (1, 4) if context.quick else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    served = Subject(directory_of(context))
    graph = served.graph("classify", PRECISION)
    assert graph is not None
    cost = cost_of(served.directory / graph.file)
    document: dict[str, Any] = {"model": served.manifest.name, "theory": vars(cost), "rows": []}
    for way in ways(_device(context), PRECISION):
        for row in rows_of(way, served, graph, _device(context), sizes, _seconds(context), _cache(context)):
            document["rows"].append(row)
            context.keep("resnet50", document)
    return document | {
        "failures": failures(document["rows"]),
        "aims": _aims(served, document["rows"], context),
    }


def introspect(context: Context) -> dict[str, Any]:
    """Time introspect and attribute beside classify, in fp16; give each the speed relative to classify."""
    sizes = (1, 4) if context.quick else (1, 8, 32)
    served = Subject(directory_of(context))
    rows: list[dict[str, Any]] = []
    for way in ways(_device(context), PRECISION):
        for kind in KINDS:
            graph = served.graph(kind, PRECISION)
            assert graph is not None
            rows += rows_of(way, served, graph, _device(context), sizes, _seconds(context), _cache(context))
            context.keep("introspect", {"rows": with_ratios(rows)})
    return {"rows": rows, "failures": failures(rows), "aims": _aims(served, rows, context)}


def compiled(context: Context) -> dict[str, Any]:
    """Time classify by torch.compile, a batch size after another, because each is compiled for a minute."""
    if context.device == "cpu":
        return {"rows": [], "unavailable": "on a CPU, compiling gained nothing over eager"}
    served = Subject(directory_of(context))
    graph = served.graph("classify", PRECISION)
    assert graph is not None
    rows: list[dict[str, Any]] = []
    for size in (1,) if context.quick else (1, 128, 32):
        for way in ways(_device(context), PRECISION, compiled=True):
            rows += rows_of(way, served, graph, _device(context), (size,), _seconds(context), _cache(context))
            context.keep("compiled", {"rows": rows})
    return {"rows": rows, "failures": failures(rows)}


def _device(context: Context) -> Device:
    return cast(Device, context.device)


def _seconds(context: Context) -> float:
    return 0.05 if context.quick else 0.5


def _cache(context: Context) -> Path:
    return context.folder / "plans"


def _aims(served: Subject, rows: list[dict[str, Any]], context: Context) -> list[dict[str, Any]]:
    """Return the project's aims for a GPU that these rows decide."""
    if context.device == "cpu":
        return []
    manifest, timed = served.manifest, [row for row in with_ratios(rows) if row.get("images_per_s")]
    judged = judge(manifest.architecture, manifest.preprocessing.crop, timed, this_machine(context.device))
    return [aim for aim in judged if aim["value"] is not None]


def _ceilings(device: torch.device, num_bytes: int, side: int) -> dict[str, float]:
    """Return bytes a second of copies on, to and from the device, and the rate of matrix products.

    A copy on the device counts bytes read and written. The matrices are random, because zeros are faster.
    """
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    half = torch.float16 if device.type == "cuda" else torch.float32
    left, right = torch.randn(2, side, side, device=device, dtype=half)
    copied_s = _seconds_of(lambda: target.copy_(source), device)
    product_s = _seconds_of(lambda: left @ right, device)
    found = {"copied_bytes_per_s": 2 * num_bytes / copied_s, "macs_per_s": side**3 / product_s}
    if device.type == "cuda":
        host = torch.empty(num_bytes // 8, dtype=torch.uint8).pin_memory()
        part = source[: len(host)]
        found["to_device_bytes_per_s"] = len(host) / _seconds_of(
            lambda: part.copy_(host, non_blocking=True), device
        )
        found["from_device_bytes_per_s"] = len(host) / _seconds_of(
            lambda: host.copy_(part, non_blocking=True), device
        )
    return found


def _seconds_of(work: Callable[[], object], device: torch.device, runs: int = 10) -> float:
    """Return the median seconds of a run, on a GPU by its own events."""
    if device.type == "cpu":
        return min(_wall_seconds(work) for _ in range(3))
    work()
    times_ms = []
    for _ in range(runs):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        work()
        ended.record()
        ended.synchronize()
        times_ms.append(begun.elapsed_time(ended))
    return statistics.median(times_ms) / 1000


def _wall_seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
