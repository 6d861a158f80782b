"""A step of benchmarks/gpu.py: photographs over HTTP, by number of workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from artifact.manifest import read_manifest
from benchmarks.closed_loop import closed_loops
from benchmarks.gpu import Context
from benchmarks.gpu_subject import directory_of
from benchmarks.gpu_ways import fastest
from benchmarks.http_servers import top_classes
from benchmarks.http_subject import Subject, agreement, photographs, right_answers
from benchmarks.load import Target
from benchmarks.own_server import own_server
from engines.registry import BASELINE

RIGHT = 0.6  # minimum share of fp32's top five classes
EXPECTED = {"200", "503"}


def http(context: Context) -> dict[str, Any]:
    """Return requests a second and latencies of a closed loop, for each number of workers."""
    counts, seconds, connections, processes = (1, 2), 1.0, 8, 1
    if not context.quick:
        counts, seconds, connections, processes = (1, 4, 8, 12), 4.0, 256, 4
    directory = directory_of(context)
    served = Subject(directory, read_manifest(directory), None)
    folder = context.folder / "photographs"
    folder.mkdir(exist_ok=True)
    files = photographs(None, folder)
    right = right_answers(served, files)
    document: dict[str, Any] = {"photographs": len(files), "rows": [], "failures": []}
    for workers in counts:
        with own_server(flags(context, directory, workers)) as server:
            target = Target(f"{server.url}/classify", "image/jpeg", files)
            with urlopen(f"{server.url}/models", timeout=60) as response:
                (model,) = json.load(response)["models"]
            agrees = agreement(right, top_classes(target))
            closed_loops(target, connections, seconds / 2, processes)  # warms up
            row = {"workers": workers, "agreement": agrees}
            row |= {name: model[name] for name in ("engine", "precision")}
            row |= closed_loops(target, connections, seconds, processes)
        document["rows"].append(row)
        if agrees < RIGHT:
            document["failures"].append(f"{workers} workers: {agrees:.0%} of the top classes are right")
        if unexpected := set(row["statuses"]) - EXPECTED:
            document["failures"].append(f"{workers} workers: statuses {sorted(unexpected)}")
        context.keep("http", document)
    return document


def flags(context: Context, directory: Path, workers: int) -> list[str]:
    """Return the server's flags: on a GPU fp16 in large batches, on the engine that was fastest at them."""
    told = ["--model", str(directory), "--device", context.device, "--workers", str(workers)]
    if context.device == "cpu":
        return [*told, "--engine", BASELINE, "--precision", "fp32", "--instances", "1"]
    rows = [row for row in context.found("resnet50").get("rows", []) if row.get("batch") == 64]
    best = fastest(rows)
    return [
        *told, "--precision", "fp16", "--max-batch-size", "64",
        *(["--engine", best["engine"]] if best else []),
    ]  # fmt: skip
