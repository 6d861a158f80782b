"""Run a graph on the CPU with exactly the arithmetic of its file, in every precision.

fp32 files run as they are served. For other precisions no CPU engine computes what the file says: ONNX
Runtime's CPU provider has no bf16 kernels, computes fp16 in float32 without rounding between operators, and
its int8 kernels overflow on processors without VNNI; OpenVINO without AMX reads bf16 and fp16 files but
computes in float32.

So this module rewrites the graph, for verification only. Tensors in half precision become float32, and each
operator's result is rounded to the half precision of the file. Q/DQ rounds and clamps in floating point, as
the ONNX standard defines it. Sums inside a convolution are float32, as on AMX and on tensor cores. An engine
that fuses operators rounds less often.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from artifact.manifest import TOP_CLASS, Precision

# Otherwise ONNX Runtime reports its use to its maker, and without a network waits for that at exit.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def open_session(graph: Path | bytes, *, optimise: bool = True) -> ort.InferenceSession:
    """Open a graph on ONNX Runtime's CPU provider; Q and DQ round, and everything else is floating point.

    Args:
        optimise: False keeps pairs of casts to half precision and back.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def open_as_written(graph: Path, precision: Precision, also: Sequence[str] = ()) -> ort.InferenceSession:
    """Open a graph so that it computes what its file says; `also` names further outputs."""
    proto = onnx.load(graph)
    is_float32 = precision in ("fp32", "int8")  # apart from what Q and DQ round
    if not is_float32:
        proto = rounded(proto)
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in also)
    return open_session(proto.SerializeToString(), optimise=is_float32)


def feed(session: ort.InferenceSession, images_NHW3: NDArray[np.uint8]) -> dict[str, NDArray[np.generic]]:
    """Return the inputs of one run; all gates are 1, and the target is the most probable class."""
    inputs: dict[str, NDArray[np.generic]] = {"images": images_NHW3}
    for value in session.get_inputs()[1:]:
        if value.name == "gates":
            inputs["gates"] = np.ones((len(images_NHW3), value.shape[1]), np.float32)
        else:
            inputs["target"] = np.full(len(images_NHW3), TOP_CLASS, np.int64)
    return inputs


def logits_of(
    session: ort.InferenceSession, images_NHW3: NDArray[np.uint8], batch: int
) -> NDArray[np.float32]:
    """Return the logits, float32 [N, K], computed `batch` images at a time."""
    chunks = (images_NHW3[start : start + batch] for start in range(0, len(images_NHW3), batch))
    return np.concatenate([np.asarray(session.run(["logits"], feed(session, c))[0]) for c in chunks])


def run_as_written(
    graph: Path, precision: Precision, images_NHW3: NDArray[np.uint8], batch: int = 64
) -> NDArray[np.float32]:
    """Return the logits [N, K] of a file, computed with its own arithmetic."""
    return logits_of(open_as_written(graph, precision), images_NHW3, batch)


def rounded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph in float32 with each result rounded to fp16 or bf16 if the file has it so."""
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    types = {info.name: info.type.tensor_type.elem_type for info in proto.graph.value_info}
    for info in (*proto.graph.input, *proto.graph.output):
        assert info.type.tensor_type.elem_type not in HALVES, "inputs and outputs are never in half precision"
    for tensor in proto.graph.initializer:
        _widen(tensor)
    nodes = []
    for node in proto.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if (half := types.get(name)) in HALVES:
                exact, narrow = f"{name}/exact", f"{name}/rounded"
                node.output[index] = exact
                nodes.append(helper.make_node("Cast", [exact], [narrow], to=half))
                nodes.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
        if node.op_type == "Cast" and _target(node).i in HALVES:
            _target(node).i = TensorProto.FLOAT
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(nodes)
    return proto


def _target(cast: onnx.NodeProto) -> onnx.AttributeProto:
    (target,) = (attribute for attribute in cast.attribute if attribute.name == "to")
    assert isinstance(target, onnx.AttributeProto)
    return target


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in HALVES:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
