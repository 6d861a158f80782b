"""ONNX Runtime on the CPU or an NVIDIA GPU, the graph as it is.

Modes: "cpu"; "cuda", ONNX Runtime's kernels over cuDNN, with a CUDA graph for each batch size; "tensorrt",
which compiles the graph for one GPU. That takes a minute the first time; plans are stored in `options.cache`.

`device="auto"` is CUDA if a GPU is present and ONNX Runtime's provider starts on it, else the CPU. Nothing is
logged about that on a machine without a GPU.

Refused are int8 on CUDA, which has no int8 convolution and would compute in fp32 between conversions; bf16,
for which the CPU lacks convolutions and CUDA lacks max-pooling (1.31); fp32 on TensorRT, which computes in
TF32, and ONNX Runtime has no option against it.

Instances: on the CPU, instances of one thread each share one session, which runs in the calling thread.
Instances of several threads each have a session with its own thread pool, because a shared pool would divide
its threads among the runs again at every operator. On a GPU each instance has a session, because CUDA graphs
and buffers belong to a session.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from numpy.typing import NDArray

from artifact.manifest import Precision
from engines import tensorrt
from engines.bindings import BoundSession
from engines.engine import Device, EngineError, EngineInfo, EngineOptions, EngineUnavailable
from engines.instances import Instances
from engines.machine import num_gpus

# ONNX Runtime reports its use to its maker by default, and without a network it waits at exit.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

logger = logging.getLogger("residuum")

Mode = Literal["cpu", "cuda", "tensorrt"]
Providers = list[tuple[str, dict[str, str]]]
Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
MODES: dict[Device, tuple[Mode, ...]] = {
    "auto": ("cpu", "cuda", "tensorrt"),
    "cpu": ("cpu",),
    "cuda": ("cuda", "tensorrt"),
}
_NO_BF16 = (
    "ONNX Runtime lacks bfloat16 kernels (convolutions on the CPU, max-pooling on CUDA); "
    "use the engine openvino or torch, or fp16"
)
# Combinations without kernels -> what to use instead.
REFUSED: dict[tuple[Precision, Mode], str] = {
    ("bf16", "cpu"): _NO_BF16,
    ("bf16", "cuda"): _NO_BF16,
    ("bf16", "tensorrt"): _NO_BF16,
    ("fp32", "tensorrt"): "TensorRT would compute it in TF32; use the mode cuda, or fp16",
    (
        "int8",
        "cuda",
    ): "ONNX Runtime's CUDA provider has no int8 convolution; use int8-trt with TensorRT, or fp16",
    ("int8", "tensorrt"): "TensorRT takes symmetric int8 only; use int8-trt, or fp16",
    ("int8-trt", "cuda"): "ONNX Runtime's CUDA provider has no int8 convolution; use TensorRT, or fp16",
    ("int8-trt", "cpu"): "this is for TensorRT on an NVIDIA GPU; use int8 on the CPU",
}


class OnnxRuntimeEngine:
    """InferenceSessions over one ONNX file.

    Raises:
        EngineUnavailable: device, mode or precision is not available here.
        EngineError: the file is no graph that ONNX Runtime can run.
    """

    def __init__(
        self, graph: Path, precision: Precision = "fp32", options: EngineOptions | None = None
    ) -> None:
        options = options or EngineOptions()
        mode = _mode(precision, options)
        on_gpu = [] if mode == "cpu" else _open_on_gpu(graph, precision, mode, options)
        if on_gpu:
            self._bound = [BoundSession(session, "cuda", options.batch_sizes) for session in on_gpu]
            self._instances = Instances[Run]([bound.run for bound in self._bound])
        else:
            mode, self._bound = "cpu", []
            self._instances = Instances(_open_on_cpu(graph, options))
        self.info = EngineInfo(
            name="onnxruntime",
            version=onnxruntime.__version__,
            device="cpu" if mode == "cpu" else "cuda",
            threads=options.threads_each * options.instances if mode == "cpu" else 0,
            mode=mode,
            instances=options.instances,
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        with self._instances.lent() as run:
            try:
                return run(inputs)
            except EngineError:
                raise
            except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
                raise EngineError(f"ONNX Runtime: {error}") from error

    def close(self) -> None:
        for bound in self._bound:
            bound.close()
        self._bound.clear()
        del self._instances


def modes(precision: Precision, options: EngineOptions) -> tuple[Mode, ...]:
    """Return the modes worth timing; see `engines.registry.modes`.

    fp16 on the CPU is left out: it has no kernels there, and runs slower than fp32.
    """
    if options.device == "cpu":
        return ("cpu",) if precision in ("fp32", "int8") else ()
    if precision in ("int8", "bf16") or why_no_cuda() is not None:
        return ()
    if precision == "fp32":
        return ("cuda",)
    found: tuple[Mode, ...] = ("tensorrt",) if why_no_tensorrt() is None else ()
    return found if precision == "int8-trt" else ("cuda", *found)


def cuda_options(precision: Precision, *, record: bool) -> dict[str, str]:
    """Return the options of the CUDA provider.

    fp32 means fp32, so TF32 is off. The heuristic finds convolution algorithms; the exhaustive search takes
    seconds for each batch size. Channels last is the layout of tensor cores, which fp32 does not use.

    Args:
        record: record a CUDA graph for each batch size.
    """
    return {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "0" if precision == "fp32" else "1",
        "enable_cuda_graph": "1" if record else "0",
    }


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the options of a session with `threads` CPU threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads save microseconds between the operators of one run. Between runs they would occupy the
    # cores that decode the next images and run the other graph.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    return options


def open_session(graph: Path, providers: Providers, threads: int) -> onnxruntime.InferenceSession:
    """Open a session over an ONNX file; raise EngineError if ONNX Runtime cannot."""
    try:
        return onnxruntime.InferenceSession(graph, session_options(threads), providers)
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open {graph.name}: {error}") from error


def _mode(precision: Precision, options: EngineOptions) -> Mode:
    """Return the mode asked for, or else the usual one of precision and device, with the CPU as fallback.

    Raises:
        EngineUnavailable: the mode is not available here.
        EngineError: there is no such mode on that device.
    """
    if options.mode is not None and options.mode not in MODES[options.device]:
        raise EngineError(f"onnxruntime has no mode {options.mode!r} on device {options.device}")
    usual: Mode = "tensorrt" if precision == "int8-trt" else "cpu" if precision == "int8" else "cuda"
    if usual not in MODES[options.device]:
        usual = MODES[options.device][0]
    mode = options.mode or usual
    if (precision, mode) in REFUSED:
        raise EngineUnavailable(f"{precision}: {REFUSED[precision, mode]}")
    reason = {"cpu": lambda: None, "cuda": why_no_cuda, "tensorrt": why_no_tensorrt}[mode]()
    if reason is None:
        return mode
    if mode == "cuda" and _may_fall_back(options):
        return "cpu"
    raise EngineUnavailable(f"device cuda: ONNX Runtime cannot use it: {reason}")


def _may_fall_back(options: EngineOptions) -> bool:
    """Return whether the CPU may run what CUDA cannot: neither a device nor a mode was asked for."""
    return options.device == "auto" and options.mode is None


def _open_on_cpu(graph: Path, options: EngineOptions) -> list[Run]:
    """Return the function that runs each instance; instances of one thread share a session."""
    threads = options.threads_each
    num_sessions = 1 if threads == 1 else options.instances
    sessions = [open_session(graph, [(CPU, {})], threads) for _ in range(num_sessions)]
    runs: list[Run] = [
        partial(_run, session, [o.name for o in session.get_outputs()]) for session in sessions
    ]
    return runs * (options.instances // num_sessions)


def _run(
    session: onnxruntime.InferenceSession, outputs: list[str], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))


def _open_on_gpu(
    graph: Path, precision: Precision, mode: Mode, options: EngineOptions
) -> list[onnxruntime.InferenceSession]:
    """Return a session for each instance, with CUDA graphs if they can be recorded.

    Return none if the provider does not start and the CPU may be used instead.

    Raises:
        EngineUnavailable: the provider does not start, and a device or mode was asked for.
        EngineError: the file is no graph that it can run.
    """
    provider = TENSORRT if mode == "tensorrt" else CUDA
    told = _providers(graph, precision, mode, options, record=True)
    try:
        sessions = [open_session(graph, told, options.threads_each)]
    except EngineError as error:
        told = _providers(graph, precision, mode, options, record=False)
        sessions = [open_session(graph, told, options.threads_each)]
        logger.warning("%s runs without CUDA graphs: %s", graph.name, error)
    if provider in sessions[0].get_providers():
        return sessions + [
            open_session(graph, told, options.threads_each) for _ in range(options.instances - 1)
        ]
    reason = f"its {provider} does not start (are CUDA 13 and cuDNN 9 installed?)"
    if not _may_fall_back(options) or precision == "int8-trt":
        raise EngineUnavailable(f"device cuda: ONNX Runtime cannot use it: {reason}")
    logger.warning("A GPU is here but ONNX Runtime cannot use it: %s. Using the CPU.", reason)
    return []


def _providers(
    graph: Path, precision: Precision, mode: Mode, options: EngineOptions, *, record: bool
) -> Providers:
    if mode == "cuda":
        return [(CUDA, cuda_options(precision, record=record)), (CPU, {})]
    session = open_session(graph, [(CPU, {})], 1)
    inputs = {value.name: tuple(value.shape[1:]) for value in session.get_inputs()}
    told = tensorrt.provider_options(graph, precision, inputs, options, record=record)
    return [(TENSORRT, told), (CUDA, cuda_options(precision, record=False)), (CPU, {})]


def why_no_cuda() -> str | None:
    """Return why CUDA cannot be tried, or None.

    This is cheap, and logs nothing; ONNX Runtime itself would log errors.
    """
    if CUDA not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider (install onnxruntime-gpu)"
    if not num_gpus():
        return "no NVIDIA GPU is visible (is the driver installed, and the device passed to the container?)"
    with redirect_stdout(sys.stderr):  # stdout is for the command line's answers
        onnxruntime.preload_dlls()  # finds CUDA's libraries in the packages of pip
    return None


def why_no_tensorrt() -> str | None:
    """Return why TensorRT cannot be tried, or None."""
    if TENSORRT not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no TensorRT provider (install onnxruntime-gpu)"
    if tensorrt.load_libraries() is None:
        return "its libraries are not installed (pip install 'tensorrt-cu13<11')"
    return why_no_cuda()
