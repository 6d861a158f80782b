"""One ONNX Runtime session with fixed buffers on a device for each batch size, and its own thread.

A CUDA graph is a recording of one run and needs the same shapes at the same addresses each time. So every
batch size has its own inputs and outputs on the device and its own CUDA graph, whose id is the run option
`gpu_graph_id`. A batch of another size is padded to the next size, or split if it is larger than all of them.
ONNX Runtime stores recordings for each *thread*, so all runs of a session are on one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from engines.engine import EngineError
from engines.machine import pin_memory

DTYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}
Row = tuple[tuple[int, ...], type[Any]]  # shape and dtype of an input or output, without the batch axis


class BoundSession:
    """Implements `Engine.run` over buffers that are allocated once.

    Args:
        session: a session whose inputs and outputs have a batch axis in front and fixed axes behind it.
        device: where the buffers are: "cuda", or "cpu", which has no advantage but lets tests run this code.
        batch_sizes: the sizes to allocate buffers for; that happens at the first run of a size.

    Raises:
        EngineError: an input or output has an unknown type, or a second free axis.
    """

    def __init__(
        self, session: onnxruntime.InferenceSession, device: str, batch_sizes: Sequence[int]
    ) -> None:
        self._session = session
        self._device = device
        self._sizes = sorted(set(batch_sizes))
        self._inputs = {value.name: _row(value) for value in session.get_inputs()}
        self._outputs = {value.name: _row(value) for value in session.get_outputs()}
        self._buckets: dict[int, _Bucket] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnxruntime")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph; see `Engine.run`."""
        return self._thread.submit(self._run, inputs).result()

    def close(self) -> None:
        """End the thread, and free recordings, buffers and session."""
        self._thread.submit(self._buckets.clear).result()
        self._thread.shutdown()
        del self._session

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if inputs.keys() != self._inputs.keys():
            raise EngineError(f"ONNX Runtime: inputs {sorted(inputs)}, not {sorted(self._inputs)}")
        num_rows, largest = len(next(iter(inputs.values()))), self._sizes[-1]
        parts = [
            self._run_part({name: array[start : start + largest] for name, array in inputs.items()})
            for start in range(0, num_rows, largest)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _run_part(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        num_rows = len(next(iter(inputs.values())))
        size = next(size for size in self._sizes if size >= num_rows)
        if size not in self._buckets:
            graph_id = 1 + self._sizes.index(size)  # 0 is ONNX Runtime's own
            self._buckets[size] = _Bucket(
                self._session, self._device, size, graph_id, self._inputs, self._outputs
            )
        return self._buckets[size].run(inputs, num_rows)


class _Bucket:
    """The buffers, the binding and the run options of one batch size."""

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        device: str,
        size: int,
        graph_id: int,
        inputs: Mapping[str, Row],
        outputs: Mapping[str, Row],
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._options = onnxruntime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        self._staged: dict[str, NDArray[Any]] = {}
        self._inputs: dict[str, onnxruntime.OrtValue] = {}
        self._outputs: dict[str, onnxruntime.OrtValue] = {}
        for name, (shape, dtype) in inputs.items():
            self._staged[name] = np.zeros((size, *shape), dtype)
            if device == "cuda":
                pin_memory(self._staged[name])
            self._inputs[name] = _allocate((size, *shape), dtype, device)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        for name, (shape, dtype) in outputs.items():
            self._outputs[name] = _allocate((size, *shape), dtype, device)
            self._binding.bind_ortvalue_output(name, self._outputs[name])

    def run(self, inputs: Mapping[str, NDArray[Any]], num_rows: int) -> dict[str, NDArray[Any]]:
        """Run the first `num_rows` rows; the rows after them are of an earlier batch, and are cut off."""
        for name, array in inputs.items():
            staged = self._staged[name]
            if array.dtype != staged.dtype or array.shape[1:] != staged.shape[1:]:
                raise EngineError(
                    f"ONNX Runtime: {name} is {array.dtype} {array.shape[1:]}, "
                    f"not {staged.dtype} {staged.shape[1:]}"
                )
            staged[:num_rows] = array
            self._inputs[name].update_inplace(staged)
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        return {name: np.array(value.numpy()[:num_rows]) for name, value in self._outputs.items()}


def _row(value: Any) -> Row:
    """Return the shape and dtype of one row of a graph's input or output; raise EngineError if unknown."""
    _, *shape = value.shape
    if value.type not in DTYPES or not all(isinstance(axis, int) for axis in shape):
        raise EngineError(f"ONNX Runtime: {value.name} is {value.type} {value.shape}: no fixed buffer for it")
    return tuple(shape), DTYPES[value.type]


def _allocate(shape: tuple[int, ...], dtype: type[Any], device: str) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
