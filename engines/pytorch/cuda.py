"""Run a program on an NVIDIA GPU: one CUDA graph for each batch size, over buffers that are allocated once.

A CUDA graph is a recording. It needs the same shapes at the same addresses each time, and costs one launch.
All sizes read the first rows of the same input buffers and take their memory from one pool, so memory grows
with the largest size and not with the number of sizes. Host memory for the copies in and out is page-locked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.pytorch.operators import Function, Program

NUM_WARM_UPS = 3  # before a recording: cuDNN chooses algorithms, libraries allocate
_recording = Lock()  # CUDA records one graph at a time in a process


class CudaRunner:
    """Runs a program on the current GPU, on a stream of its own.

    Args:
        program: a program whose weights are on that GPU.
        compiled: by batch size, functions to record in place of the program's module.
        sizes: the batch sizes to record; others run operator by operator.

    Raises:
        RuntimeError: the GPU has too little memory, or another error of torch.
    """

    def __init__(self, program: Program, compiled: Mapping[int, Function], sizes: Sequence[int]) -> None:
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._module = program.module
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]] = {}
        if not sizes:
            return
        self._host_inputs = [tensor.pin_memory() for tensor in program.zeros(max(sizes))]
        self._inputs = [tensor.cuda() for tensor in self._host_inputs]
        torch.cuda.synchronize()  # the buffers were allocated on another stream
        pool = torch.cuda.graph_pool_handle()
        for size in sorted(sizes, reverse=True):  # the largest first: the others fit into its memory
            self._record(size, compiled.get(size, self._module), pool)
        _, outputs = self._recorded[max(sizes)]
        self._host_outputs = [torch.empty_like(output, device="cpu").pin_memory() for output in outputs]

    def run(self, inputs: list[Tensor]) -> list[NDArray[Any]]:
        size = len(inputs[0])
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if size not in self._recorded:
                outputs = self._module(*(tensor.cuda() for tensor in inputs))
                return [output.cpu().numpy() for output in outputs]
            for host, device, tensor in zip(self._host_inputs, self._inputs, inputs, strict=True):
                host[:size].copy_(tensor)
                device[:size].copy_(host[:size], non_blocking=True)
            graph, outputs = self._recorded[size]
            graph.replay()
            for host, output in zip(self._host_outputs, outputs, strict=True):
                host[:size].copy_(output, non_blocking=True)
            self._stream.synchronize()
            return [host[:size].numpy().copy() for host in self._host_outputs]

    def _record(self, size: int, function: Function, pool: Any) -> None:
        inputs = [tensor[:size] for tensor in self._inputs]
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), _recording:
            with torch.cuda.stream(self._stream), _fastest_algorithms():
                for _ in range(NUM_WARM_UPS):
                    function(*inputs)
            # "thread_local": other threads may use the GPU during the recording, because they may be serving.
            with torch.cuda.graph(graph, pool, self._stream, capture_error_mode="thread_local"):
                outputs = function(*inputs)
        self._recorded[size] = graph, outputs


@contextmanager
def _fastest_algorithms() -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape; the recording then contains the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
