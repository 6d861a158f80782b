"""An int8 graph from a floating-point one, by calibration: `int8` for CPUs, `int8-trt` for TensorRT.

Every convolution and the head have int8 weights and read int8. Between them a tensor is rounded if a layer or
a residual addition reads it, so that engines fuse convolution, addition and ReLU. Weights have a scale per
output channel, and biases compensate the mean error of rounding in each channel.

    int8      activations u8 with a zero point, biases int32: what CPU kernels take
    int8-trt  activations s8 without one; biases and all else as in the given graph, which is in fp16

The module knows the operators of our own graphs, and of engines only which operators they fuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from artifact.errors import ResiduumError
from artifact.manifest import Quantization
from export.calibrate import Range, calibrate, channel_means, observe
from export.qdq import (
    LARGEST_WEIGHT,
    LAYERS,
    MIN_SCALE,
    Additions,
    QuantParams,
    Scheme,
    Writer,
    beside,
    own_constants,
    rounded_tensors,
)

Int8 = Literal["int8", "int8-trt"]
METHOD = "ranges of least squared error, biases corrected"


class QuantizeError(ResiduumError):
    """The graph cannot be quantized, or not with these images; the message says why."""


def quantize(
    graph: Path,
    out: Path,
    images_NHW3: NDArray[np.uint8],
    *,
    precision: Int8,
    dataset: str,
    weight_bits: int | None = None,
    kept_layers: Sequence[str] = (),
    additions: Additions = "both",
) -> Quantization:
    """Write a classify graph in int8 to `out`, with ranges that are measured on the images.

    Args:
        graph: exported as fp32 for int8, and as fp16 for int8-trt.
        images_NHW3: preprocessed as served, uint8 [N, crop, crop, 3].
        dataset: the name of the images, for people.
        weight_bits: 8, or 7: half of the range. Processors without VNNI add two products u8 * s8 in 16 bits,
            where 2 * 255 * 64 still fits. Default: 7 for int8, which costs next to nothing; 8 for int8-trt.
        kept_layers: names of nodes that stay in floating point; see `sensitivities`.
        additions: which inputs of residual additions are rounded.

    Raises:
        QuantizeError: not such a graph, images of another shape or none, no such layer.
    """
    proto, scheme = onnx.load(graph), _scheme(precision, weight_bits, additions)
    _check(proto, images_NHW3, scheme)
    layers = _layers(proto.graph, kept_layers)
    own_constants(proto, layers)
    quant_params = _all_quant_params(proto, layers, images_NHW3, scheme)
    _correct_biases(proto, layers, quant_params, images_NHW3, scheme)
    quantized = Writer(proto, quant_params, scheme).write(layers)
    onnx.checker.check_model(quantized, full_check=True)
    onnx.save(quantized, out)
    return Quantization(
        method=METHOD,
        dataset=dataset,
        num_images=len(images_NHW3),
        weight_bits=scheme.weight_bits,
        kept_layers=tuple(kept_layers),
    )


def sensitivities(
    graph: Path,
    images_NHW3: NDArray[np.uint8],
    *,
    precision: Int8 = "int8",
    weight_bits: int | None = None,
) -> dict[str, float]:
    """Return how much rounding one layer, its weights and its input, moves the logits; the worst layer first.

    The figure is the mean squared error of the logits divided by their variance. Each layer takes one pass
    over the images, so a hundred images are enough.

    Raises:
        QuantizeError: as `quantize`.
    """
    proto, scheme = onnx.load(graph), _scheme(precision, weight_bits)
    _check(proto, images_NHW3, scheme)
    layers = _layers(proto.graph, ())
    own_constants(proto, layers)
    quant_params = _all_quant_params(proto, layers, images_NHW3, scheme)
    exact = _logits(proto, images_NHW3)
    errors = {}
    for layer in layers:
        read = {layer.input[0]: quant_params[layer.input[0]]}
        found = _logits(Writer(proto, read, scheme).write([layer]), images_NHW3)
        errors[layer.name] = float(((found - exact) ** 2).mean() / exact.var())
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _logits(proto: onnx.ModelProto, images_NHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([values["logits"] for values in observe(proto, images_NHW3, ["logits"])])


# --- what is rounded ---------------------------------------------------------------------------------


def _scheme(precision: Int8, weight_bits: int | None, additions: Additions = "both") -> Scheme:
    """Return the scheme of a precision; raise QuantizeError: no such precision or number of bits."""
    if precision not in get_args(Int8):
        raise QuantizeError(f"{precision} is not made by calibration: expected {' or '.join(get_args(Int8))}")
    weight_bits = weight_bits or (7 if precision == "int8" else 8)
    if weight_bits not in LARGEST_WEIGHT:
        raise QuantizeError(f"weights of {weight_bits} bits: expected 7 or 8")
    return Scheme(precision == "int8-trt", weight_bits, additions)


def _check(proto: onnx.ModelProto, images_NHW3: NDArray[np.uint8], scheme: Scheme) -> None:
    """Raise QuantizeError if the graph or the images do not fit."""
    shapes = {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in proto.graph.input
    }
    if list(shapes) != ["images"] or [info.name for info in proto.graph.output] != ["logits"]:
        raise QuantizeError("only a classify graph can be quantized: one from `images` to `logits`")
    if any(node.op_type == "DequantizeLinear" for node in proto.graph.node):
        raise QuantizeError("the graph is quantized already")
    if images_NHW3.dtype != np.uint8 or list(images_NHW3.shape[1:]) != shapes["images"][1:]:
        raise QuantizeError(
            f"images to calibrate on are {images_NHW3.dtype} {list(images_NHW3.shape)}: "
            f"the graph takes uint8 [N, {', '.join(map(str, shapes['images'][1:]))}]"
        )
    if not len(images_NHW3):
        raise QuantizeError("no images to calibrate on")
    constants = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    expected = TensorProto.FLOAT16 if scheme.signed else TensorProto.FLOAT
    if any(constants.get(n.input[1]) != expected for n in _layers(proto.graph, ()) if n.op_type == "Conv"):
        raise QuantizeError("int8 is made from the fp32 graph, and int8-trt from the fp16 one")


def _layers(graph: onnx.GraphProto, kept: Sequence[str]) -> list[onnx.NodeProto]:
    """Return the layers to quantize; raise QuantizeError: no such layer, or none left."""
    layers = [node for node in graph.node if node.op_type in LAYERS]
    if unknown := set(kept) - {node.name for node in layers}:
        raise QuantizeError(f"no layer {min(unknown)}: there are {', '.join(node.name for node in layers)}")
    left = [node for node in layers if node.name not in kept]
    if not left:
        raise QuantizeError("no layer is left to quantize")
    return left


def _all_quant_params(
    proto: onnx.ModelProto, layers: Sequence[onnx.NodeProto], images_NHW3: NDArray[np.uint8], scheme: Scheme
) -> dict[str, QuantParams]:
    """Return scale and zero point of every tensor to be rounded."""
    origins = rounded_tensors(proto.graph, layers, scheme.additions)
    calibrated = [name for name, origin in origins.items() if name == origin]
    num_levels = 255 if scheme.signed else 256
    ranges = calibrate(lambda: observe(proto, images_NHW3, calibrated), num_levels, scheme.signed)
    return {name: _quant_params(ranges[origin], scheme) for name, origin in origins.items()}


def _quant_params(bounds: Range, scheme: Scheme) -> QuantParams:
    if not bounds.high > bounds.low:
        return QuantParams(1.0, 0)
    if scheme.signed:
        return QuantParams(max(bounds.high / 127, MIN_SCALE["float16"]), 0)
    scale = (bounds.high - bounds.low) / 255
    return QuantParams(scale, round(-bounds.low / scale))


def _correct_biases(
    proto: onnx.ModelProto,
    layers: Sequence[onnx.NodeProto],
    quant_params: dict[str, QuantParams],
    images_NHW3: NDArray[np.uint8],
    scheme: Scheme,
) -> None:
    """Move each layer's bias by the mean error that rounding this layer alone leaves in each channel.

    Each rounded layer reads the input that the exact network gives it. A correction for the errors of earlier
    layers as well, for all layers at once, would count the same error once for each layer
    (docs/decisions.md).
    """
    both = beside(proto, Writer(proto, quant_params, scheme).write(layers), layers)
    biases = {node.output[0]: node.input[2] for node in layers}
    means = channel_means(both, images_NHW3, [*biases, *(f"{name}.rounded" for name in biases)])
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for output, name in biases.items():
        value = numpy_helper.to_array(tensors[name])
        moved = (value + means[output] - means[f"{output}.rounded"]).astype(value.dtype)
        tensors[name].CopyFrom(numpy_helper.from_array(moved, name))
