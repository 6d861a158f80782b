"""What is in the files: every precision and kind of network, without a stray operator.

The networks are small, and not run for long: what they compute is asked in test_export.py and, in fp16 and
bf16, at the end here.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from artifact.manifest import GraphKind, Precision
from export.emulate import open_as_written, rounded, run_as_written
from export.graph import DTYPES, GRAPHS, OPSETS, ClassifyGraph, cut_introspect, export_graph, tap_names
from export.verify import TOLERANCES, GateError, check_parity, golden, reference, synthetic_images
from models.resnet import ResNet, build
from tests.support.networks import liven, metadata_for

SIZE = 32
IMAGES = synthetic_images(3, SIZE, seed=4)
KINDS: tuple[GraphKind, ...] = get_args(GraphKind)
ROWS: dict[str, dict[str, object]] = {
    "resnet20": {"depths": (1, 1, 1)},  # padded shortcuts
    "resnet26d": {"depths": (1, 1), "width": 8, "num_classes": 10},  # bottlenecks, pooled projections
    "resnetv2_164": {"depths": (1, 1)},  # pre-activation
    "seresnet18": {"depths": (1, 1), "width": 8, "num_classes": 10},
}
# Every other row in float32 and the narrow ones only for the first: an export takes a second.
CASES: list[tuple[str, Precision]] = [
    *(("resnet20", precision) for precision in DTYPES),
    ("seresnet18", "fp16"),
    ("resnetv2_164", "bf16"),
    ("resnet26d", "fp32"),
]
HALF = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
Export = Callable[[str, GraphKind, Precision], Path]


@cache
def network(row: str) -> ResNet:
    return liven(build(row, seed=1, **ROWS[row]))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """The file of a row's graph, made the first time that it is asked for."""
    folder = tmp_path_factory.mktemp("graphs")

    @cache
    def make(row: str, kind: GraphKind, precision: Precision) -> Path:
        path = folder / f"{row}.{kind}.{precision}.onnx"
        if kind == "introspect":
            cut_introspect(onnx.load(make(row, "attribute", precision)), path)
        else:
            export_graph(kind, network(row), metadata_for(network(row), SIZE).preprocessing, path, precision)
        return path

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("row", "precision"), CASES)
def test_a_graph_holds_what_it_must_and_no_more(
    export: Export, row: str, kind: GraphKind, precision: Precision
) -> None:
    proto = onnx.load(export(row, kind, precision))
    onnx.checker.check_model(proto, full_check=True)
    graph = proto.graph
    operators = Counter(node.op_type for node in graph.node)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in network(row).modules())
    if kind == "attribute":
        convolutions += len(convolutions_of_shortcuts(row))

    assert [(o.domain, o.version) for o in proto.opset_import] == [("", OPSETS[precision])]
    assert operators["BatchNormalization"] == 0
    assert operators["Conv"] == convolutions
    # uint8 rows become planes before they grow to four bytes a number, and nothing is turned after.
    work = [node.op_type for node in graph.node]
    assert work[:3] == ["Transpose", "Cast", "Sub"]
    assert operators["Transpose"] == 1
    if kind == "attribute":  # casts what introspect does and what it multiplies, but nothing twice
        cast = [node.input[0] for node in graph.node if node.op_type == "Cast"]
        assert len(set(cast)) == len(cast)
    else:
        assert operators["Cast"] == sum(casts(graph, precision, kind, row).values())

    for info in (*graph.input, *graph.output):
        assert isinstance(info.type.tensor_type.shape.dim[0].dim_param, str)
        assert info.type.tensor_type.shape.dim[0].dim_param, f"{info.name} has a fixed batch"
    kinds = [info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)]
    expected = [TensorProto.UINT8, *[TensorProto.FLOAT] * (len(kinds) - 1)]
    if kind == "attribute":
        expected[2] = TensorProto.INT64
    assert kinds == expected


def convolutions_of_shortcuts(row: str) -> list[torch.nn.Conv2d]:
    """Those that contributions go back through, with weights of their own: transposed, and in float32."""
    ways = (block.way_of_shortcut() for _, block in network(row).named_blocks())
    return [module for way in ways for module in way.modules() if isinstance(module, torch.nn.Conv2d)]


def casts(graph: onnx.GraphProto, precision: Precision, kind: GraphKind, row: str) -> dict[str, int]:
    """Every cast that a graph may have.

    - uint8 to float32, once; in half precision the normalised image to that, and the head's input back
    - introspect in half precision: the gate of every block, and every measured tensor before it is squared
    """
    allowed = {"pixels": 1}
    if precision != "fp32":
        allowed |= {"image": 1, "features": 1}
        if kind == "introspect":
            allowed |= {
                "gates": len(list(network(row).named_blocks())),
                "measured": len(tap_names(network(row))),
            }
    return allowed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("row", "precision"), CASES)
def test_weights_are_stored_once_and_in_the_precision(
    export: Export, row: str, kind: GraphKind, precision: Precision
) -> None:
    path, preprocessing = export(row, kind, precision), metadata_for(network(row), SIZE).preprocessing
    graph = onnx.load(path).graph
    weights = [tensor for tensor in graph.initializer if math.prod(tensor.dims) >= 100]
    assert weights
    head = next(node.input[1] for node in graph.node if node.op_type == "Gemm")
    transposed = convolutions_of_shortcuts(row) if kind == "attribute" else []
    expected = {HALF[precision]} | {TensorProto.FLOAT for conv in transposed if conv.weight.numel() >= 100}
    assert {tensor.data_type for tensor in weights if tensor.name != head} == expected
    assert {t.data_type for t in graph.initializer if t.name == head} == {TensorProto.FLOAT}
    values = [tensor.raw_data for tensor in graph.initializer if len(tensor.raw_data) > 64]
    assert len(set(values)) == len(values)
    assert b"/export/graph.py" not in path.read_bytes()  # the exporter's stack traces
    num_bytes = sum(
        p.numel() * p.element_size()
        for p in ClassifyGraph(network(row), preprocessing, precision).parameters()
    )
    num_bytes += sum(4 * conv.weight.numel() for conv in transposed)
    assert path.stat().st_size < num_bytes + 400 * len(graph.node) + 2000


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_emulation_rounds_as_torch_does(export: Export, precision: Precision) -> None:
    """The rewritten graph against the converted module, whose CPU kernels round every operator's result."""
    model, preprocessing = network("resnet20"), metadata_for(network("resnet20"), SIZE).preprocessing
    path = export("resnet20", "classify", precision)
    emulated = run_as_written(path, precision, IMAGES)
    with torch.inference_mode():
        converted = ClassifyGraph(model, preprocessing, precision)(torch.from_numpy(IMAGES)).numpy()
        exact = ClassifyGraph(model, preprocessing)(torch.from_numpy(IMAGES)).numpy()
    error = np.abs(emulated - exact).max()
    assert np.abs(emulated - converted).max() < error < 4 * np.abs(converted - exact).max()
    narrow = [n for n in rounded(onnx.load(path)).graph.node if n.op_type == "Cast"]
    assert len(narrow) > 2 * 7


@pytest.mark.parametrize("precision", list(TOLERANCES))
@pytest.mark.parametrize("kind", KINDS)
def test_every_precision_passes_its_gate_and_a_wrong_graph_none(
    export: Export, kind: GraphKind, precision: Precision
) -> None:
    model = network("resnet20")
    preprocessing = metadata_for(model, SIZE).preprocessing
    exact = copy.deepcopy(model).double()
    expected = reference(exact, preprocessing, synthetic_images(8, SIZE, seed=0))
    path = export("resnet20", kind, precision)
    parity = check_parity(kind, path, exact, preprocessing, expected, precision)
    assert 0 < parity.max_abs_delta_logit < TOLERANCES[precision].parity * max(1, expected.logit_range)
    assert (parity.sum_parity_max_abs is None) == (kind == "classify")
    logits_K, tolerance = golden(path, precision, expected)
    assert np.array_equal(logits_K, expected.logits_NK[0])
    assert tolerance >= TOLERANCES[precision].golden

    other = preprocessing.model_copy(update={"mean": (0.3, 0.3, 0.3)})
    shifted = reference(exact, other, expected.images_NHW3)
    with pytest.raises(GateError, match=r"logits differ from the source model's by .* at batch 1"):
        check_parity(kind, path, exact, other, shifted, precision)


@pytest.mark.parametrize(
    "constant",
    [torch.zeros_like, lambda logits_NK: logits_NK.mean((0, 1), keepdim=True).expand_as(logits_NK)],
    ids=["zeros", "expanded"],
)
def test_what_is_of_one_batch_is_not_exported(
    constant: Callable[[Tensor], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OfOneBatch(ClassifyGraph):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits + constant(logits)

    monkeypatch.setitem(GRAPHS, "classify", OfOneBatch)
    model = network("resnet20")
    with pytest.raises(AssertionError, match="is for 1000003 images, however many there are"):
        export_graph("classify", model, metadata_for(model, SIZE).preprocessing, tmp_path / "wrong.onnx")


def test_fp16_squares_in_float32(tmp_path: Path) -> None:
    """A branch of 300 over 16 channels: its squares pass 65,504, its norm must not."""
    model = copy.deepcopy(network("resnet20"))
    with torch.no_grad():
        last = [m for m in model.stage1[0].branch.modules() if isinstance(m, torch.nn.BatchNorm2d)][-1]
        last.bias.fill_(300.0)
    path = tmp_path / "introspect.onnx"
    export_graph("introspect", model, metadata_for(model, SIZE).preprocessing, path, "fp16")
    session = open_as_written(path, "fp16")
    gates = np.array([[1, 1, 1], [0.5, 1, 1]], np.float32)
    maps = session.run(["maps"], {"images": IMAGES[:2], "gates": gates})[0]
    assert np.isfinite(maps).all()
    first = maps[:, 0, : SIZE * SIZE]
    assert np.allclose(first[0], 300, rtol=0.05)
    assert np.allclose(first[1], 150, rtol=0.05)
