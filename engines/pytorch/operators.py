"""An ONNX file as straight-line torch code: a table of the operators that our graphs are made of.

Each row is a function of an operator's inputs and, by their ONNX names, its attributes. `read_program` calls
these functions once on placeholders; the result is a `torch.fx.GraphModule` that contains no ONNX.

The table has the operators that `export` writes for the rows of the zoo, in opsets 20 to 22. The library
onnx2torch does the same; its last release is of August 2024, and it has neither the ReduceMean, ReduceL2 and
Pad of opset 18 and later nor bfloat16 weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx
from torch.nn import functional as F

from engines.engine import EngineError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
}

Function = Callable[..., tuple[Tensor, ...]]
Row = tuple[torch.dtype, tuple[int, ...]]  # dtype and shape of an input, without the batch axis


@dataclass(frozen=True)
class Program:
    """A graph as a module that takes `inputs` and returns a tuple of `outputs`, both in this order."""

    module: fx.GraphModule
    inputs: Mapping[str, Row]
    outputs: tuple[str, ...]

    def zeros(self, size: int) -> list[Tensor]:
        """Return inputs of zeros for a batch of `size`, in host memory."""
        return [torch.zeros((size, *shape), dtype=dtype) for dtype, shape in self.inputs.values()]


def read_program(path: Path) -> Program:
    """Read an ONNX file. Weights become buffers, channels-last for convolutions, as `images` are.

    Raises:
        EngineError: it is no ONNX file, or it uses an operator in a way that the table does not cover.
    """
    try:
        graph = onnx.load(path).graph
    except Exception as error:  # protobuf's and onnx's own, and OSError
        raise EngineError(f"torch cannot open {path.name}: {error}") from error
    weights: dict[str, Tensor] = {}
    code = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(code)
    values: dict[str, Any] = {"": None}  # an input that is left out
    for index, tensor in enumerate(graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind in "iu":  # shapes, axes, indices
            values[tensor.name] = array.tolist()
        else:
            weights[f"weight{index}"] = _weight(array, DTYPES[tensor.data_type])
            values[tensor.name] = fx.Proxy(code.get_attr(f"weight{index}"), tracer)
    for value in graph.input:
        values[value.name] = fx.Proxy(code.placeholder(value.name), tracer)
    for node in graph.node:
        (output,) = node.output
        values[output] = _apply(node, [values[name] for name in node.input], path.name)
    outputs = tuple(value.name for value in graph.output)
    code.output(tuple(values[name].node for name in outputs))
    return Program(fx.GraphModule(weights, code), {v.name: _row(v) for v in graph.input}, outputs)


def _weight(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """Convert a weight, through float32, which represents bfloat16 exactly; NumPy has no bfloat16."""
    wide = array if dtype in (torch.float64, torch.bool) else array.astype(np.float32)
    tensor = torch.from_numpy(np.array(wide)).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _row(value: onnx.ValueInfoProto) -> Row:
    kind = value.type.tensor_type
    return DTYPES[kind.elem_type], tuple(dim.dim_value for dim in kind.shape.dim[1:])


def _apply(node: onnx.NodeProto, inputs: list[Any], file: str) -> Any:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if operator not in OPERATORS:
        raise EngineError(f"torch: {file} has the operator {operator}, which is not in our table")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    try:
        return OPERATORS[operator](*inputs, **attributes)
    except Exception as error:
        raise EngineError(f"torch: {file} uses {operator} in an unsupported way: {error}") from error


def _window(
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    auto_pad: bytes = b"NOTSET",
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return stride, padding and dilation as torch takes them, with the same padding at both ends."""
    if auto_pad != b"NOTSET" or list(pads[:2]) != list(pads[2:]):
        raise ValueError(f"auto_pad {auto_pad!r}, pads {pads}")
    return tuple(strides), tuple(pads[:2]), tuple(dilations)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    group: int = 1,
    kernel_shape: object = None,
    **window: Any,
) -> Tensor:
    stride, padding, dilation = _window(**window)
    return F.conv2d(x, weight, bias, stride, padding, dilation, group)


def _max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], ceil_mode: int = 0, storage_order: int = 0, **window: Any
) -> Tensor:
    """`storage_order` concerns only the second output, the indices, which our graphs do not use."""
    return F.max_pool2d(x, tuple(kernel_shape), *_window(**window), ceil_mode=bool(ceil_mode))


def _average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], ceil_mode: int = 0, count_include_pad: int = 0, **window: Any
) -> Tensor:
    stride, padding, dilation = _window(**window)
    if dilation != (1, 1):
        raise ValueError(f"dilations {dilation}")
    return F.avg_pool2d(x, tuple(kernel_shape), stride, padding, bool(ceil_mode), bool(count_include_pad))


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    if (alpha, beta, transA) != (1, 1, 0):
        raise ValueError(f"alpha {alpha}, beta {beta}, transA {transA}")
    return F.linear(a, b if transB else b.t(), c)


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a reduction over `axes`, or over all axes if none are given."""

    def reduce(
        x: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if noop_with_empty_axes and not axes:
            raise ValueError("no axes")
        return function(x, dim=axes or None, keepdim=bool(keepdims))

    return reduce


def _unsqueeze(x: Tensor, axes: list[int]) -> Tensor:
    for axis in sorted(axes):
        x = x.unsqueeze(axis)
    return x


def _reshape(x: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    """Reshape; a size of 0 keeps that axis, unless `allowzero`."""
    sizes = [x.shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(shape)]
    return x.reshape(sizes)


def _expand(x: Tensor, shape: list[int] | torch.Size) -> Tensor:
    """Expand; in a constant shape 1 keeps that axis. A shape that the graph computes has the full sizes."""
    return x.expand([-1 if size == 1 else size for size in shape] if isinstance(shape, list) else shape)


def _gather(x: Tensor, index: int | Tensor, *, axis: int = 0) -> Tensor:
    """Select one constant index, or the indices of a vector that the graph computes."""
    if isinstance(index, list):
        raise TypeError(f"indices {index}")
    return x.select(axis, index) if isinstance(index, int) else x.index_select(axis, index)


def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        raise ValueError("select_last_index")
    return x.argmax(axis, bool(keepdims))


def _slice(
    x: Tensor,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    axes = list(range(len(starts))) if axes is None else axes
    if min(axes) < 0:
        raise ValueError(f"axes {axes}")
    index = [slice(None)] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


def _pad(
    x: Tensor, pads: list[int], value: None = None, axes: None = None, *, mode: bytes = b"constant"
) -> Tensor:
    """Pad with zeros. ONNX lists all starts, then all ends; torch takes pairs, the last axis first."""
    if mode != b"constant" or value is not None or axes is not None:
        raise ValueError(f"mode {mode!r}, value {value}, axes {axes}")
    half = len(pads) // 2
    pairs = list(zip(pads[:half], pads[half:], strict=True))
    return F.pad(x, [size for pair in reversed(pairs) for size in pair])


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "Cast": lambda x, *, to, saturate=1: x.to(DTYPES[to]),
    "Clip": torch.clamp,
    "Concat": lambda *tensors, axis: torch.cat(tensors, axis),
    "Conv": _conv,
    "Div": torch.div,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": torch.gt,
    "Less": torch.lt,
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "Pad": _pad,
    "ReduceL2": _reduce(torch.linalg.vector_norm),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Shape": lambda x, *, start=0, end=None: x.shape[start:end],
    "Sigmoid": torch.sigmoid,
    "Slice": _slice,
    "Sub": torch.sub,
    "Transpose": lambda x, *, perm: x.permute(perm),
    "Unsqueeze": _unsqueeze,
    "Where": torch.where,
}
