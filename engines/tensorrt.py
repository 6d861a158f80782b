"""The options of ONNX Runtime's TensorRT provider, and where compiled plans are stored.

A plan is valid for one GPU, one version of the software and one graph, so a hash of all of them names its
directory. Timings of layers are shared by all graphs and stored one level above. Nothing here needs a GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import onnxruntime

from artifact.manifest import Precision, sha256_of
from engines.engine import EngineOptions
from engines.machine import gpu_name

LIBRARIES = ("libnvinfer.so.10", "libnvonnxparser.so.10")  # that the provider is linked to
HALF = ("fp16", "int8-trt")  # graphs in which layers may compute in fp16

Shapes = Mapping[str, tuple[int, ...]]


def provider_options(
    graph: Path, precision: Precision, inputs: Shapes, options: EngineOptions, *, record: bool
) -> dict[str, str]:
    """Return the options of the TensorRT provider.

    The profile is the range of batch sizes that the plan takes; it is tuned for the largest.

    Args:
        inputs: the shape of one row of each input.
        record: record a CUDA graph for each batch size.
    """
    smallest, largest = min(options.batch_sizes), max(options.batch_sizes)
    told = {
        "device_id": "0",
        "trt_fp16_enable": "1" if precision in HALF else "0",
        "trt_int8_enable": "1" if precision == "int8-trt" else "0",
        "trt_profile_min_shapes": profile(inputs, smallest),
        "trt_profile_opt_shapes": profile(inputs, largest),
        "trt_profile_max_shapes": profile(inputs, largest),
        "trt_cuda_graph_enable": "1" if record else "0",
    }
    if options.cache is None:
        return told
    timings = options.cache / "tensorrt" / _hash(*_software())
    plans = timings / _hash(sha256_of(graph), precision, smallest, largest)
    if _can_write(plans):
        told |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(plans),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(timings),
        }
    return told


def profile(inputs: Shapes, batch_size: int) -> str:
    """Return a profile such as `images:8x224x224x3,gates:8x16`, as the provider reads it."""
    return ",".join(f"{name}:{'x'.join(map(str, (batch_size, *shape)))}" for name, shape in inputs.items())


def load_libraries() -> int | None:
    """Load TensorRT's libraries, so that ONNX Runtime finds them.

    Return their version as one number, or None if they are not installed.
    """
    package = find_spec("tensorrt_libs")
    folders = [Path(place) for place in (package.submodule_search_locations or ())] if package else []
    loaded = []
    for name in LIBRARIES:
        for path in (*(str(folder / name) for folder in folders), name):
            try:
                loaded.append(ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL))
                break
            except OSError:
                continue
    return int(loaded[0].getInferLibVersion()) if len(loaded) == len(LIBRARIES) else None


def _can_write(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK)


def _software() -> tuple[object, ...]:
    return gpu_name(), onnxruntime.__version__, load_libraries()


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]
