"""The cost of a graph and the peak of a machine, before anything is measured.

Multiply-accumulates and bytes are counted from the graph's own shapes. A processor's peak is estimated from
its features and clock. Its speed at multiplying matrices and copying memory is measured now.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from artifact.manifest import Precision
from engines.machine import cpu_features, cpu_name, gpu_name, num_cores

LAYERS = ("Conv", "Gemm")
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")
NUM_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int8-trt": 1}

# Multiply-accumulates a cycle and core, by the first feature that the processor has. If it has no feature for
# the arithmetic, it computes in fp32. Assumed: two vector units; 16 cycles for a tile of AMX (Intel's
# optimization manual, chapter 20); without VNNI, two instructions for 32 products in int8.
MACS_A_CYCLE: dict[Precision, tuple[tuple[str, int], ...]] = {
    "fp32": (("avx512f", 32), ("fma", 16)),
    "bf16": (("amx_bf16", 512), ("avx512_bf16", 64), ("avx512f", 32), ("fma", 16)),
    "fp16": (("amx_fp16", 512), ("avx512_fp16", 64), ("avx512f", 32), ("fma", 16)),
    "int8": (("amx_int8", 1024), ("avx512_vnni", 128), ("avx_vnni", 64), ("avx512f", 64), ("avx2", 32)),
}
# 10^12 multiply-accumulates a second, dense: tensor cores, but ordinary cores for fp32. From NVIDIA's data
# sheets, which count two operations each; for SXM boards where there are several.
GPU_TMACS: dict[str, dict[Precision, float]] = {
    "H100": {"fp32": 33.5, "bf16": 494.7, "fp16": 494.7, "int8-trt": 989.5},
    "H200": {"fp32": 33.5, "bf16": 494.7, "fp16": 494.7, "int8-trt": 989.5},
    "A100": {"fp32": 9.7, "bf16": 156.0, "fp16": 156.0, "int8-trt": 312.0},
    "L4": {"fp32": 15.1, "bf16": 60.5, "fp16": 60.5, "int8-trt": 121.0},
    "T4": {"fp32": 4.05, "fp16": 32.5, "int8-trt": 65.0},
}


@dataclass(frozen=True)
class Cost:
    """The cost of a graph; memory is counted as if only the layers' inputs, outputs and weights moved."""

    macs: int  # of the convolutions and the head, for one image
    weight_bytes: int  # of all constants, as the file stores them
    activations: int  # numbers that layers, poolings and additions read or write for one image


@dataclass(frozen=True)
class Machine:
    """A machine's features and speeds; `macs_a_second` is the estimated peak by precision, None if not
    known.
    """

    device: str
    cpu: str
    cores: int
    clock_ghz: float | None
    features: tuple[str, ...]
    gpu: str | None
    macs_a_second: dict[str, float | None]
    seen_macs_a_second: float  # a matrix product in fp32, by NumPy
    seen_bytes_a_second: float  # bytes read and written while copying

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def cost_of(path: Path) -> Cost:
    """Count the cost of a graph; activations count at operators that engines do not fuse into others."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    known = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in known} | constants

    def size(name: str) -> int:  # for one image
        return math.prod(shapes[name][1:])

    macs = activations = 0
    for node in model.graph.node:
        if node.op_type in LAYERS:
            positions = math.prod(shapes[node.output[0]][2:])
            macs += math.prod(shapes[node.input[1]]) * positions
        if node.op_type in (*LAYERS, *POOLS):
            activations += size(node.input[0]) + size(node.output[0])
        elif node.op_type == "Add" and not constants.keys() & set(node.input):
            activations += size(node.input[0])  # the other input is that of the fused convolution
    weight_bytes = sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in model.graph.initializer
    )
    return Cost(macs, weight_bytes, activations)


def intensity(cost: Cost, precision: Precision, batch: int) -> float:
    """Return the operations (two a multiply-accumulate) for each byte of weights and activations."""
    return 2 * cost.macs / (cost.weight_bytes / batch + cost.activations * NUM_BYTES[precision])


def this_machine(device: str, cores: int = 0) -> Machine:
    """Return this machine with `cores` used (0: all); measuring takes about a second."""
    cores, clock, features, gpu = cores or num_cores(), clock_ghz(), cpu_features(), gpu_name()
    ceilings: dict[str, float | None]
    if device == "cuda":
        board = next((row for key, row in GPU_TMACS.items() if key in (gpu or "").split()), {})
        ceilings = {name: 1e12 * board[name] if name in board else None for name in NUM_BYTES}
    else:
        ceilings = {name: cpu_ceiling(name, features, cores, clock) for name in MACS_A_CYCLE}
    return Machine(
        device=device,
        cpu=cpu_name(),
        cores=cores,
        clock_ghz=clock,
        features=features,
        gpu=gpu,
        macs_a_second=ceilings,
        seen_macs_a_second=_see_macs(),
        seen_bytes_a_second=_see_bytes(cores),
    )


def cpu_ceiling(
    precision: Precision, features: tuple[str, ...], cores: int, clock: float | None
) -> float | None:
    """Return cores x clock x multiply-accumulates a cycle; None if one of them is unknown."""
    a_cycle = next((macs for feature, macs in MACS_A_CYCLE[precision] if feature in features), None)
    return None if clock is None or a_cycle is None else cores * clock * 1e9 * a_cycle


def clock_ghz() -> float | None:
    """Return the highest clock that the system reports; a virtual machine reports the nominal one."""
    found = []
    try:
        khz = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text(encoding="ascii")
        found.append(float(khz) / 1e6)
    except (OSError, ValueError):
        pass
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        found += [float(line.partition(":")[2]) / 1e3 for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        pass
    return max(found, default=None)


def _see_macs(side: int = 1024) -> float:
    left, right = np.ones((2, side, side), np.float32)
    return side**3 / _least_seconds(lambda: np.matmul(left, right))


def _see_bytes(cores: int, num_bytes: int = 32 * 2**20) -> float:
    """Return the bytes a second that all cores copy; together their memory is larger than most caches."""
    pairs = [np.ones((2, num_bytes // 4), np.float32) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        seconds = _least_seconds(lambda: list(pool.map(lambda pair: np.copyto(pair[0], pair[1]), pairs)))
    return 2 * num_bytes * cores / seconds


def _least_seconds(work: Callable[[], object], times: int = 6) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def print_machine(machine: Machine) -> None:
    clock = (
        "clock not known" if machine.clock_ghz is None else f"{machine.clock_ghz:.2f} GHz as the system says"
    )
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = ": BUSY, small differences mean nothing" if load > machine.cores / 2 else ""
    print(f"machine: {machine.cpu}, {machine.cores} cores, {clock}; load {load:.1f}{busy}")
    print(f"         has {' '.join(machine.features) or 'no known features'}; GPU: {machine.gpu or 'none'}")
    print(
        f"         seen: {machine.seen_macs_a_second / 1e9:.0f} GMAC/s in fp32 matrix products, "
        f"{machine.seen_bytes_a_second / 1e9:.1f} GB/s copied"
    )


def print_theory(costs: dict[Precision, Cost], machine: Machine, batch: int) -> None:
    """Print a line for each precision. Peaks are estimates: clocks vary, and caches save memory traffic."""
    print(
        f"{'theory':<10}{'weights':>10}{'activations':>14}{'ops/byte':>10}{f'at {batch}':>8}"
        f"{'ceiling, estimated':>24}{'all through memory':>24}"
    )
    for precision, cost in costs.items():
        peak = machine.macs_a_second.get(precision)
        ceiling = "not known" if peak is None else f"{peak / cost.macs:.0f} images/s"
        moved = cost.weight_bytes / batch + cost.activations * NUM_BYTES[precision]
        memory = "not known"
        if machine.device == "cpu":
            memory = f"{machine.seen_bytes_a_second / moved:.0f} images/s"
        print(
            f"{precision:<10}{cost.weight_bytes / 1e6:>7.1f} MB"
            f"{cost.activations * NUM_BYTES[precision] / 1e6:>11.2f} MB"
            f"{intensity(cost, precision, 1):>10.0f}{intensity(cost, precision, batch):>8.0f}"
            f"{ceiling:>24}{memory:>24}"
        )
