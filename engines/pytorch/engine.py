"""torch on an NVIDIA GPU or the CPU, running the artifact's own ONNX file.

Modes: "eager", operator by operator, the usual one; "compile", which compiles each of `options.batch_sizes`
with torch.compile. Compiling needs a C++ compiler, and on a GPU Triton, and takes up to a minute a size. On a
GPU both modes record a CUDA graph for each batch size. On the CPU compiling gained nothing over eager in
channels-last; docs/decisions.md has the figures. Sizes that are not in `options.batch_sizes` run in eager.

fp32 means fp32: an engine on a GPU turns TF32 off for the whole process, because torch has one global switch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from artifact.manifest import Precision
from engines.engine import EngineError, EngineInfo, EngineOptions, EngineUnavailable
from engines.instances import Instances
from engines.pytorch.cuda import CudaRunner
from engines.pytorch.operators import Function, Program, Row, read_program

Mode = Literal["eager", "compile"]


class TorchEngine:
    """The operators of one ONNX file as torch functions; all outputs are float32.

    Args:
        graph: the file.
        precision: its precision.
        options: `batch_sizes` are compiled and recorded when the engine is opened, not at the first run.

    Raises:
        EngineUnavailable: device, mode or precision is not available here.
        EngineError: the file is no graph that this engine can run.
    """

    def __init__(
        self, graph: Path, precision: Precision = "fp32", options: EngineOptions | None = None
    ) -> None:
        options = options or EngineOptions()
        if precision not in ("fp32", "bf16", "fp16"):
            raise EngineUnavailable(f"{precision}: torch runs fp32, bf16 and fp16; use another engine")
        device, mode = _device(options), _mode(options)
        if device == "cuda" and options.instances > 1:
            raise EngineUnavailable("torch on a GPU runs one batch at a time; use --instances 1")
        threads = options.threads_each * options.instances if device == "cpu" else 0
        self.info = EngineInfo("torch", torch.__version__, device, threads, mode, options.instances)
        program = read_program(graph)
        self._inputs, self._outputs = program.inputs, program.outputs
        try:
            self._runner = _runner(program, device, mode, options)
        except Exception as error:  # torch's exceptions have no common base but Exception
            reason = str(error).strip().partition("\n")[0]
            if mode == "compile":
                raise EngineUnavailable(
                    f"torch cannot compile {graph.name} here, use mode eager: {reason}"
                ) from error
            raise EngineError(f"torch cannot run {graph.name}: {reason}") from error

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if self._runner is None:
            raise EngineError("torch: the engine is closed")
        tensors = _tensors(self._inputs, inputs)
        try:
            outputs = self._runner.run(tensors)
        except Exception as error:  # after a fault on the GPU, every later run fails too
            raise EngineError(f"torch: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        """Free memory, on a GPU including torch's own cache."""
        self._runner = None
        if self.info.device == "cuda":
            torch.cuda.empty_cache()


class CpuRunner:
    """Runs a program on the CPU; opening it runs every compiled function once, which compiles it."""

    def __init__(self, program: Program, compiled: Mapping[int, Function], options: EngineOptions) -> None:
        self._module = program.module
        self._compiled = compiled
        self._instances = Instances([options.threads_each] * options.instances)
        for size in compiled:
            self.run(program.zeros(size))

    def run(self, inputs: list[Tensor]) -> list[NDArray[Any]]:
        function = self._compiled.get(len(inputs[0]), self._module)
        with self._instances.lent() as threads, torch.inference_mode(), _threads(threads):
            return [output.numpy() for output in function(*inputs)]


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Set the number of OpenMP threads of the calling thread, which takes less than a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(options: EngineOptions) -> Literal["cpu", "cuda"]:
    if options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if torch.version.cuda is None:
        raise EngineUnavailable("device cuda: this build of torch is for the CPU only")
    if not torch.cuda.is_available():
        raise EngineUnavailable(
            "device cuda: torch sees no NVIDIA GPU (is the driver installed, and new enough for CUDA "
            f"{torch.version.cuda}?)"
        )
    return "cuda"


def _mode(options: EngineOptions) -> Mode:
    if options.mode in (None, "eager"):
        return "eager"
    if options.mode == "compile":
        return "compile"
    raise EngineError(f"torch has no mode {options.mode!r}: it has eager and compile")


def _runner(
    program: Program, device: str, mode: Mode, options: EngineOptions
) -> CpuRunner | CudaRunner | None:
    if device == "cuda":
        program.module.cuda()
    sizes = tuple(sorted(set(options.batch_sizes)))
    compiled = _compiled(program, sizes, options.cache) if mode == "compile" else {}
    if device == "cuda":
        return CudaRunner(program, compiled, sizes)
    return CpuRunner(program, compiled, options)


def _compiled(program: Program, sizes: tuple[int, ...], cache: Path | None) -> dict[int, Function]:
    """Return a function for each batch size, which its first run compiles.

    Each is a module of its own over the same weights, because torch stores at most eight compilations of a
    module. torch.compile's default mode is used: autotuning takes minutes for each size, and `CudaRunner`
    records the CUDA graphs.
    """
    if cache is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "torch"))
    return {
        size: torch.compile(
            fx.GraphModule(program.module, program.module.graph), fullgraph=True, dynamic=False
        )
        for size in sizes
    }


def _tensors(expected: Mapping[str, Row], inputs: Mapping[str, NDArray[Any]]) -> list[Tensor]:
    """Return the inputs in the program's order, as tensors that share the arrays' memory.

    Raises:
        EngineError: they differ from the program's inputs, which torch would silently broadcast or convert.
    """
    if inputs.keys() != expected.keys():
        raise EngineError(f"torch: inputs {sorted(inputs)}, not {sorted(expected)}")
    tensors = []
    for name, (dtype, shape) in expected.items():
        array = np.require(inputs[name], requirements=["C", "W"])
        tensor = torch.from_numpy(array)
        if tensor.dtype != dtype or tuple(tensor.shape[1:]) != shape:
            raise EngineError(f"torch: {name} is {array.dtype} {array.shape[1:]}, not {dtype} {shape}")
        tensors.append(tensor)
    if len({len(tensor) for tensor in tensors}) != 1:
        raise EngineError("torch: the inputs have different batch sizes")
    return tensors
