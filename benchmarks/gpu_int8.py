"""A step of benchmarks/gpu.py: int8 for TensorRT with Q/DQ before a residual addition at two places.

`both` rounds both inputs of an addition, `shortcut` that of the shortcut alone, as NVIDIA's ModelOpt does.
For each placement the step compares the file's own arithmetic, emulated on the CPU, with fp32. Where TensorRT
is present, the step also compares its answers with the file's, and times it. The faster placement of those
that are right is the one to keep.
"""

from __future__ import annotations

from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import Graph
from benchmarks.gpu import Context
from benchmarks.gpu_subject import directory_of
from benchmarks.gpu_ways import Subject, failures, fastest, rows_of, ways
from benchmarks.subjects import FRESH_SEED
from engines.engine import Device
from export.emulate import run_as_written
from export.qdq import Additions
from export.quantize import quantize
from export.verify import Reference, golden, synthetic_images

PRECISION = "int8-trt"
NUM_FRESH = 16
LARGEST_RMSE = 0.25  # of the standard deviation of fp32's logits; wrongly placed scales give 1 and more


def int8(context: Context) -> dict[str, Any]:
    """Return parity and speed of both placements, and the faster one that is right; None: not timed."""
    num_calibration, sizes = (8, (1, 4)) if context.quick else (16, (1, 8, 32, 128))
    served = Subject(directory_of(context))
    source = served.graph("classify", "fp16")
    assert source is not None
    crop = served.manifest.preprocessing.crop
    images = synthetic_images(num_calibration, crop, FRESH_SEED + 1)
    fresh = synthetic_images(NUM_FRESH, crop, FRESH_SEED)
    fp32_file = served.graph("classify", "fp32")
    assert fp32_file is not None
    exact_NK = run_as_written(served.directory / fp32_file.file, "fp32", fresh)
    document: dict[str, Any] = {"placements": {}, "rows": [], "failures": []}
    for additions in get_args(Additions):
        path = context.folder / f"{additions}.onnx"
        quantize(
            served.directory / source.file,
            path,
            images,
            precision=PRECISION,
            dataset="made-up images",
            additions=additions,
        )
        found = compare(run_as_written(path, PRECISION, fresh), exact_NK)
        document["placements"][additions] = found
        if not found["rmse_of_std"] <= LARGEST_RMSE:
            document["failures"].append(f"{additions}: the logits are off by {found['rmse_of_std']:.2f}")
        first = Reference(fresh[:1], exact_NK[:1].astype(np.float64))
        graph = as_graph(source, str(path), *golden(path, PRECISION, first))
        context.keep("int8", document)
        for way in ways(cast(Device, context.device), PRECISION):
            device, seconds = cast(Device, context.device), 0.05 if context.quick else 0.5
            for row in rows_of(way, served, graph, device, sizes, seconds, context.folder / "plans"):
                document["rows"].append(row | {"additions": additions})
                context.keep("int8", document)
    document["failures"] += failures(document["rows"], may_be_none=True)
    best = fastest([row for row in document["rows"] if row.get("batch") == sizes[-1]])
    return document | {"faster": best and best["additions"]}


def compare(logits_NK: NDArray[np.floating], exact_NK: NDArray[np.floating]) -> dict[str, float]:
    """Return how far int8's logits are from fp32's."""
    return {
        "max_abs_delta_logit": float(np.abs(logits_NK - exact_NK).max()),
        "rmse_of_std": float(np.sqrt(((logits_NK - exact_NK) ** 2).mean()) / exact_NK.std()),
        "top1_agreement": float((logits_NK.argmax(1) == exact_NK.argmax(1)).mean()),
    }


def as_graph(source: Graph, file: str, logits_K: NDArray[np.float64], tolerance: float) -> Graph:
    """Return the manifest's record of a quantized graph, whose golden image is the first fresh one."""
    return source.model_copy(
        update={
            "file": file,
            "precision": PRECISION,
            "golden_logits": tuple(map(float, logits_K)),
            "golden_tolerance": tolerance,
        }
    )
