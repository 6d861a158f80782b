"""ONNX Runtime on the CPU or an NVIDIA GPU, the graph as it is.

Modes: "cpu"; "cuda", its own kernels over cuDNN, each batch size recorded as a CUDA graph; "tensorrt", which
compiles the graph for one GPU (a minute the first time; plans are kept in `options.cache`).

`device="auto"` means: CUDA if a GPU is there and ONNX Runtime's provider really starts on it, else the CPU,
without a word on machines that have no GPU.

What runs nowhere is refused: int8 on CUDA, which has no int8 convolution and would compute in fp32 between
conversions; bf16, of which the CPU lacks convolutions and CUDA lacks max-pooling (1.31); fp32 on TensorRT,
which computes in TF32 and is given no option against it.

Instances: on the CPU, those of one thread each share one session, which runs in the thread that calls it;
those of more threads have each a session with its own pool, because one pool would be shared out anew at
every operator. On a GPU each has a session, because recordings and buffers belong to one.
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

# ONNX Runtime reports its use to its maker unless told not to, and at exit waits where it cannot.
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
# What has no kernels, and what to use instead.
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
        EngineUnavailable: device, mode or precision cannot be had here.
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
    """See `engines.registry.modes`. fp16 has no kernels on the CPU: it runs there, but slower than fp32."""
    if options.device == "cpu":
        return ("cpu",) if precision in ("fp32", "int8") else ()
    if precision in ("int8", "bf16") or why_no_cuda() is not None:
        return ()
    if precision == "fp32":
        return ("cuda",)
    found: tuple[Mode, ...] = ("tensorrt",) if why_no_tensorrt() is None else ()
    return found if precision == "int8-trt" else ("cuda", *found)


def cuda_options(precision: Precision, *, record: bool) -> dict[str, str]:
    """Options of the CUDA provider; `record`: as CUDA graphs.

    fp32 means fp32: no TF32. The exhaustive search for convolution algorithms takes seconds a batch size.
    Tensor cores want channels last; fp32 does not use them.
    """
    return {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "0" if precision == "fp32" else "1",
        "enable_cuda_graph": "1" if record else "0",
    }


def session_options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between the operators of one run save microseconds; between runs they would take
    # the cores that decode the next images and run the other graph.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    return options


def open_session(graph: Path, providers: Providers, threads: int) -> onnxruntime.InferenceSession:
    """Raises EngineError where ONNX Runtime cannot."""
    try:
        return onnxruntime.InferenceSession(graph, session_options(threads), providers)
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open {graph.name}: {error}") from error


def _mode(precision: Precision, options: EngineOptions) -> Mode:
    """The mode asked for, or else what suits precision and device; "auto" is the CPU where CUDA is not.

    Raises:
        EngineUnavailable: it cannot be had here.
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
    if mode == "cuda" and _left_to_us(options):
        return "cpu"
    raise EngineUnavailable(f"device cuda: ONNX Runtime cannot use it: {reason}")


def _left_to_us(options: EngineOptions) -> bool:
    return options.device == "auto" and options.mode is None


def _open_on_cpu(graph: Path, options: EngineOptions) -> list[Run]:
    """What runs each instance; those of one thread can share a session."""
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
    """A session an instance, with CUDA graphs where they can be recorded; none where the CPU shall do.

    Raises:
        EngineUnavailable: the provider does not start, and the device was not left to us.
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
    if not _left_to_us(options) or precision == "int8-trt":
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
    """Why CUDA cannot be tried, or None. Cheap and silent: ONNX Runtime itself would log errors."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider (install onnxruntime-gpu)"
    if not num_gpus():
        return "no NVIDIA GPU is visible (is the driver installed, and the device passed to the container?)"
    with redirect_stdout(sys.stderr):  # stdout belongs to the command line's answers
        onnxruntime.preload_dlls()  # finds CUDA's libraries where pip puts them
    return None


def why_no_tensorrt() -> str | None:
    """Why TensorRT cannot be tried, or None."""
    if TENSORRT not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no TensorRT provider (install onnxruntime-gpu)"
    if tensorrt.load_libraries() is None:
        return "its libraries are not installed (pip install 'tensorrt-cu13<11')"
    return why_no_cuda()
