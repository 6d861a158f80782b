"""Q/DQ in a graph: which tensors are rounded, and the graph with their rounding written out.

The module knows the operators of our own graphs, and of engines only which operators they fuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

LAYERS = ("Conv", "Gemm")
# Operators whose output has only values of the input and zeros: the output keeps the input's scale.
PASSING = ("MaxPool", "Slice", "Pad")
LARGEST_WEIGHT = {7: 64, 8: 127}
# Below, fp16 does not represent a scale to 3 %, and float32 not the product of two scales.
MIN_SCALE = {"float16": 2.0**-20, "float32": 2.0**-60}


# Which inputs of a residual addition are rounded: both, or only the shortcut, as NVIDIA's ModelOpt does. The
# branch's sum then reaches the addition in floating point.
Additions = Literal["both", "shortcut"]


@dataclass(frozen=True)
class QuantParams:
    """q = round(x / scale) + zero_point."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Scheme:
    """How int8 for CPUs and int8 for TensorRT differ: signed activations, and the bits of the weights.

    `additions`: which inputs of residual additions are rounded.
    """

    signed: bool
    weight_bits: int
    additions: Additions = "both"

    @property
    def largest(self) -> int:
        return LARGEST_WEIGHT[self.weight_bits]


def rounded_tensors(
    graph: onnx.GraphProto, layers: Iterable[onnx.NodeProto], additions: Additions = "both"
) -> dict[str, str]:
    """Return the tensors to be rounded, each with the tensor whose range it has: itself or one before it.

    Rounded are the inputs of `layers` and of residual additions, and tensors that PASSING operators put
    between.
    """
    constants = {tensor.name for tensor in graph.initializer}
    found = {node.input[0] for node in layers}
    depths = _depths(graph)
    for node in graph.node:
        if node.op_type == "Add" and not constants & set(node.input):
            sides = sorted(node.input, key=lambda name: depths[name])  # the branch has more layers
            found |= set(sides if additions == "both" else sides[:1])
    for node in reversed(graph.node):
        if node.op_type in PASSING and node.output[0] in found:
            found.add(node.input[0])
    origins = {name: name for name in found}
    for node in graph.node:
        if node.op_type in PASSING and node.input[0] in found:
            origins[node.output[0]] = origins[node.input[0]]
    return origins


def _depths(graph: onnx.GraphProto) -> dict[str, int]:
    """Return for every tensor the largest number of layers on a path to it."""
    depths: dict[str, int] = {}
    for node in graph.node:
        depth = max((depths.get(name, 0) for name in node.input), default=0) + (node.op_type in LAYERS)
        depths |= dict.fromkeys(node.output, depth)
    return depths


def own_constants(proto: onnx.ModelProto, layers: Iterable[onnx.NodeProto]) -> None:
    """Give every layer its own weights and bias, because exporters merge equal constants.

    The last convolution of a pre-activation branch has no bias: it gets a bias of zero.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    taken: set[str] = set()
    for layer in layers:
        weight = numpy_helper.to_array(constants[layer.input[1]])
        if len(layer.input) < 3:
            layer.input.append("")
        for index, name in enumerate(layer.input[1:], 1):
            if name not in taken and name:
                taken.add(name)
                continue
            layer.input[index] = f"{layer.name}.{('weight', 'bias')[index - 1]}"
            value = numpy_helper.to_array(constants[name]) if name else np.zeros(len(weight), weight.dtype)
            proto.graph.initializer.append(numpy_helper.from_array(value, layer.input[index]))


class Writer:
    """Puts Q/DQ into a graph; names are the tensor's own with .q, .dq, .scale and .zero_point after it.

    Layers have weights and biases of their own: see `own_constants`.
    """

    def __init__(self, proto: onnx.ModelProto, quant_params: dict[str, QuantParams], scheme: Scheme) -> None:
        self.proto, self.quant_params, self.scheme = proto, quant_params, scheme
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        self.dtypes = _dtypes(proto)
        self.nodes: list[onnx.NodeProto] = []

    def write(self, layers: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        names = {node.name for node in layers}
        for node in self.proto.graph.node:
            node = onnx.NodeProto.FromString(node.SerializeToString())
            del node.metadata_props[:]  # the place in our source
            if node.name in names:
                self._round_weights(node)
            if node.op_type not in LAYERS or node.name in names:
                node.input[:] = [f"{name}.dq" if name in self.quant_params else name for name in node.input]
            self.nodes.append(node)
            for name in node.output:
                if name in self.quant_params:
                    self._round(name)
        return self._result()

    def _round(self, name: str) -> None:
        params = self.quant_params[name]
        self.constants[f"{name}.scale"] = np.array(params.scale, self.dtypes[name])
        self.constants[f"{name}.zero_point"] = np.array(
            params.zero_point, np.int8 if self.scheme.signed else np.uint8
        )
        how = [f"{name}.scale", f"{name}.zero_point"]
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *how], [f"{name}.q"], f"{name}.q"))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}.q", *how], [f"{name}.dq"], f"{name}.dq")
        )

    def _round_weights(self, node: onnx.NodeProto) -> None:
        """Replace the weights by int8, and the bias by int32 if the engine takes that."""
        weight, bias = (self.constants[name] for name in node.input[1:])
        input_scale = self.quant_params[node.input[0]].scale
        largest = self.scheme.largest
        rows = weight.reshape(len(weight), -1).astype(np.float64)
        smallest = np.abs(bias.astype(np.float64)) / input_scale / 2**30  # so that the bias fits into int32
        smallest = np.maximum(smallest, MIN_SCALE[weight.dtype.name])
        scale = np.maximum(np.abs(rows).max(1) / largest, smallest).astype(weight.dtype)
        values = np.clip(np.rint(rows / scale[:, None].astype(np.float64)), -largest, largest)
        node.input[1] = self._constant(node.input[1], values.reshape(weight.shape).astype(np.int8), scale)
        if not self.scheme.signed:
            bias_scale = np.float32(input_scale) * scale
            node.input[2] = self._constant(
                node.input[2], np.rint(bias / bias_scale).astype(np.int32), bias_scale
            )

    def _constant(self, name: str, values: NDArray[np.signedinteger], scale: NDArray[np.floating]) -> str:
        """Add the values with their scale, and return the name of the dequantized tensor."""
        parts = [f"{name}.q", f"{name}.scale", f"{name}.zero_point"]
        del self.constants[name]
        self.constants |= dict(zip(parts, (values, scale, np.zeros(len(scale), values.dtype)), strict=True))
        self.nodes.append(helper.make_node("DequantizeLinear", parts, [f"{name}.dq"], f"{name}.dq", axis=0))
        return f"{name}.dq"

    def _result(self) -> onnx.ModelProto:
        given = self.proto.graph
        graph = helper.make_graph(
            self.nodes,
            given.name,
            list(given.input),
            list(given.output),
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()],
            value_info=list(given.value_info),
        )
        result = helper.make_model(graph, opset_imports=list(self.proto.opset_import))
        result.ir_version = self.proto.ir_version
        return result


def _dtypes(proto: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """Return the dtype of every tensor between nodes: in a half-precision graph the head is float32."""
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return {
        info.name: helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        for info in inferred.graph.value_info
    }


def beside(
    proto: onnx.ModelProto, quantized: onnx.ModelProto, layers: Iterable[onnx.NodeProto]
) -> onnx.ModelProto:
    """Return `proto` with a rounded copy of each of `layers`: same input, output named .rounded."""
    names = {node.name for node in layers}
    both = onnx.ModelProto()
    both.CopyFrom(proto)
    both.graph.node.extend(node for node in quantized.graph.node if node.op_type.endswith("Linear"))
    for node in quantized.graph.node:
        if node.name in names:
            both.graph.node.append(node)
            both.graph.node[-1].name += ".rounded"
            both.graph.node[-1].output[0] += ".rounded"
    own = {tensor.name for tensor in proto.graph.initializer}
    both.graph.initializer.extend(t for t in quantized.graph.initializer if t.name not in own)
    return both
