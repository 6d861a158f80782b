"""ONNX Runtime on the CPU or an NVIDIA GPU, the graph as it is.

`device="auto"` means: CUDA if a GPU is there and ONNX Runtime's provider really starts on it, else the CPU,
without a word on machines that have no GPU.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from service.engines import EngineError, EngineInfo, EngineUnavailable

# ONNX Runtime reports its use to its maker unless told not to, and at exit waits where it cannot.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

logger = logging.getLogger("residuum")

Device = Literal["auto", "cpu", "cuda"]

MAX_AUTO_THREADS = 16  # a ResNet's layers are too small to feed more
# fp32 means fp32: no TF32. The exhaustive search for convolution algorithms takes seconds a batch size.
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"


class OnnxRuntimeEngine:
    """An InferenceSession over one ONNX file.

    Args:
        graph: the file.
        device: where to run; see the module.
        threads: for one graph on the CPU; 0 means by the number of cores.

    Raises:
        EngineUnavailable: device="cuda" and CUDA does not start here.
        EngineError: the file is no graph that ONNX Runtime can run.
    """

    def __init__(self, graph: Path, device: Device = "auto", threads: int = 0) -> None:
        self._session, used_device = _open(graph, device, threads or auto_threads())
        self._outputs = [output.name for output in self._session.get_outputs()]
        self.info = EngineInfo(
            name="onnxruntime",
            version=onnxruntime.__version__,
            device=used_device,
            threads=(threads or auto_threads()) if used_device == "cpu" else 0,
        )

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise EngineError(f"ONNX Runtime: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))


def auto_threads() -> int:
    """As many threads as this process may use cores, but no more than pay."""
    return min(num_cores(), MAX_AUTO_THREADS)


def num_cores() -> int:
    """Cores that this process may use: its affinity, cut by its cgroup's quota (`docker run --cpus`)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2 here, or "max": no quota
        return cores


def _open(
    graph: Path, device: Device, threads: int
) -> tuple[onnxruntime.InferenceSession, Literal["cpu", "cuda"]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between the operators of one run save microseconds; between runs they would take
    # the cores that decode the next images and run the other graph.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors
    if device != "cpu":
        reason = _why_no_cuda()
        if reason is None:
            session = _session(graph, options, [(CUDA, CUDA_OPTIONS), CPU])
            if CUDA in session.get_providers():
                return session, "cuda"
            reason = "its CUDA provider does not start (are CUDA 13 and cuDNN 9 installed?)"
            if device == "auto":
                logger.warning("A GPU is here but ONNX Runtime cannot use it: %s. Using the CPU.", reason)
                return session, "cpu"
        if device == "cuda":
            raise EngineUnavailable(f"device cuda: ONNX Runtime cannot use it: {reason}")
    return _session(graph, options, [CPU]), "cpu"


def _session(
    graph: Path, options: onnxruntime.SessionOptions, providers: list[Any]
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(graph, options, providers)
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open {graph.name}: {error}") from error


def _why_no_cuda() -> str | None:
    """Why CUDA cannot be tried, or None. Cheap and silent: ONNX Runtime itself would log errors."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this build of ONNX Runtime has no CUDA provider (install onnxruntime-gpu)"
    if not _num_gpus():
        return "no NVIDIA GPU is visible (is the driver installed, and the device passed to the container?)"
    with redirect_stdout(sys.stderr):  # stdout belongs to the command line's answers
        onnxruntime.preload_dlls()  # finds CUDA's libraries where pip puts them
    return None


def _num_gpus() -> int:
    """GPUs that the CUDA driver sees; 0 without a driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
