"""How fast an artifact's graphs run: theory first, then the table; the last line printed is JSON.

    residuum bench [--model NAME]

Shapes: N batch, L blocks.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from models.manifest import Graph, Manifest, read_manifest
from service.batcher import batch_sizes
from service.engines import Engine
from service.engines.onnxruntime import OnnxRuntimeEngine
from service.settings import Settings


def bench_engine(directory: Path, settings: Settings, seconds: float) -> None:
    """Print milliseconds a batch and images a second of every graph, and the ratio to classify."""
    manifest = read_manifest(directory)
    macs = multiply_accumulates(directory / manifest.graphs[0].file)
    print(
        f"{manifest.name} {manifest.version}: {manifest.provenance.num_parameters / 1e6:.2f} M parameters, "
        f"{macs / 1e6:.1f} M multiply-accumulates an image, {manifest.preprocessing.crop} pixels"
    )
    rows = []
    for size in batch_sizes(settings.max_batch_size):
        for graph in manifest.graphs:
            engine = OnnxRuntimeEngine(directory / graph.file, settings.device, settings.threads)
            rows.append(measure(engine, graph, manifest, size, seconds))
    classify = {row["batch"]: row["images_per_s"] for row in rows if row["graph"] == "classify"}
    print(
        f"{'graph':<12}{'precision':<11}{'batch':>6}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'images/s':>10}{'GMAC/s':>8}{'ratio':>7}"
    )
    for row in rows:
        row["ratio_to_classify"] = row["images_per_s"] / classify[row["batch"]]
        gmacs = row["images_per_s"] * macs / 1e9
        print(
            f"{row['graph']:<12}{row['precision']:<11}{row['batch']:>6}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}"
            f"{row['images_per_s']:>10.1f}{gmacs:>8.1f}{row['ratio_to_classify']:>7.2f}"
        )
    print(json.dumps({"model": manifest.name, "version": manifest.version, "macs": macs, "rows": rows}))


def measure(engine: Engine, graph: Graph, manifest: Manifest, size: int, seconds: float) -> dict[str, Any]:
    """Run batches of `size` for about `seconds`, after a warm-up."""
    rng = np.random.default_rng(0)
    side = manifest.preprocessing.crop
    inputs: dict[str, NDArray[Any]] = {"images": rng.integers(0, 256, (size, side, side, 3), np.uint8)}
    if graph.kind == "introspect":
        inputs["gates"] = np.ones((size, len(manifest.blocks)), np.float32)
    for _ in range(3):
        engine.run(inputs)
    times_ms = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        engine.run(inputs)
        times_ms.append((time.perf_counter() - started) * 1000)
    return {
        "graph": graph.kind,
        "precision": graph.precision,
        "engine": engine.info.name,
        "device": engine.info.device,
        "batch": size,
        "p50_ms": statistics.median(times_ms),
        "p99_ms": float(np.percentile(times_ms, 99)),
        "images_per_s": size * len(times_ms) / (sum(times_ms) / 1000),
    }


def multiply_accumulates(path: Path) -> int:
    """Of the convolutions and the head, for one image, from the graph's own shapes."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            _, _, height, width = shapes[node.output[0]]
            total += int(np.prod(weights[node.input[1]])) * height * width
        elif node.op_type == "Gemm":
            total += int(np.prod(weights[node.input[1]]))
    return total
