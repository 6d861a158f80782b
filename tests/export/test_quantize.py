"""Quantization: real graphs of small random networks, their int8 files read back and run by real engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from export.calibrate import Range, calibrate
from export.emulate import open_session, run_as_written
from export.fuse import fuse_batchnorm
from export.graph import export_graph
from export.qat import Rounding, add_rounding, fine_tune_under_rounding, start_rounding
from export.qdq import LAYERS, rounded_tensors
from export.quantize import Int8, QuantizeError, quantize, sensitivities
from export.verify import synthetic_images
from models.pixels import normalised
from models.resnet import build
from tests.support.networks import liven, metadata_for

IMAGES = synthetic_images(32, 32, seed=5)
FRESH = synthetic_images(64, 32, seed=6)


@dataclasses.dataclass(frozen=True)
class Rounded:
    """An int8 graph, read back."""

    path: Path
    proto: onnx.ModelProto

    @property
    def constants(self) -> dict[str, NDArray[np.generic]]:
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in self.proto.graph.initializer}

    @property
    def layers(self) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type in LAYERS]

    def maker(self, name: str) -> onnx.NodeProto:
        return next(node for node in self.proto.graph.node if name in node.output)

    def additions(self) -> list[onnx.NodeProto]:
        """Those of residual and shortcut: not those of a constant."""
        nodes = [node for node in self.proto.graph.node if node.op_type == "Add"]
        return [node for node in nodes if not set(self.constants) & set(node.input)]


def make(graph: Path, out: Path, precision: Int8 = "int8", **options: object) -> Rounded:
    quantize(graph, out, IMAGES, precision=precision, dataset="noise", **options)  # type: ignore[arg-type]
    return Rounded(out, onnx.load(out))


def export(name: str, path: Path, precision: str = "fp32", **changes: object) -> Path:
    model = liven(build(name, seed=1, **changes))
    export_graph("classify", model, metadata_for(model).preprocessing, path, precision)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def fp32(artifact: Path) -> Path:
    return artifact / "classify.fp32.onnx"


@pytest.fixture(scope="module")
def int8(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    return make(fp32, tmp_path_factory.mktemp("int8") / "classify.int8.onnx")


@pytest.fixture(scope="module")
def int8_trt(tmp_path_factory: pytest.TempPathFactory) -> Rounded:
    folder = tmp_path_factory.mktemp("trt")
    return make(export("resnet20", folder / "fp16.onnx", "fp16"), folder / "int8-trt.onnx", "int8-trt")


def test_every_layer_has_int8_weights_by_channel_and_an_int32_bias(int8: Rounded) -> None:
    assert len(int8.layers) == 20
    for layer in int8.layers:
        weight = int8.maker(layer.input[1])
        values, scale, zero = (int8.constants[name] for name in weight.input)
        assert (weight.op_type, values.dtype, zero.dtype) == ("DequantizeLinear", np.int8, np.int8)
        assert scale.shape == zero.shape == (len(values),)
        assert not zero.any()
        # Two products with u8 fit into 16 bits, and the range is used.
        assert 60 <= np.abs(values.astype(int)).max() <= 64
        bias = [int8.constants[name] for name in int8.maker(layer.input[2]).input]
        assert bias[0].dtype == np.int32
        input_scale = int8.constants[int8.maker(layer.input[0]).input[1]]
        np.testing.assert_allclose(bias[1], scale * input_scale, rtol=1e-6)


def test_what_layers_and_additions_read_is_u8(int8: Rounded) -> None:
    assert len(int8.additions()) == 9
    for node in (*int8.layers, *int8.additions()):
        for name in node.input if node.op_type == "Add" else node.input[:1]:
            dequantize = int8.maker(name)
            assert dequantize.op_type == "DequantizeLinear"
            assert int8.maker(dequantize.input[0]).op_type == "QuantizeLinear"
            assert int8.constants[dequantize.input[2]].dtype == np.uint8


def test_after_a_relu_zero_is_zero(int8: Rounded) -> None:
    """So that engines drop the ReLU: the rounding to u8 does what it did."""
    points = {node.input[0]: node for node in int8.proto.graph.node if node.op_type == "QuantizeLinear"}
    relus = [node for node in int8.proto.graph.node if node.op_type == "Relu" and node.output[0] in points]
    assert len(relus) == 18
    assert all(int8.constants[points[node.output[0]].input[2]] == 0 for node in relus)


def test_what_passes_a_tensor_on_keeps_its_scale(int8: Rounded) -> None:
    """Slices and the padding of shortcuts: engines then move bytes."""
    passing = [node for node in int8.proto.graph.node if node.op_type in ("Slice", "Pad")]
    assert len(passing) == 6
    for node in passing:
        after = next(other for other in int8.proto.graph.node if other.input[:1] == node.output[:1])
        assert after.op_type == "QuantizeLinear"
        before = int8.maker(node.input[0])
        assert [int8.constants[n] for n in before.input[1:]] == [int8.constants[n] for n in after.input[1:]]


def test_the_interface_stays_and_the_file_shrinks(int8: Rounded, fp32: Path) -> None:
    given = onnx.load(fp32)
    assert list(int8.proto.graph.input) == list(given.graph.input)
    assert list(int8.proto.graph.output) == list(given.graph.output)
    assert int8.proto.opset_import == given.opset_import
    assert {node.name for node in given.graph.node} <= {node.name for node in int8.proto.graph.node}
    # Of a network of 270,000 parameters the nodes take their share, too.
    assert int8.path.stat().st_size < 0.4 * fp32.stat().st_size


def test_it_answers_as_fp32_does_at_any_batch(int8: Rounded, fp32: Path) -> None:
    exact = open_session(fp32).run(["logits"], {"images": FRESH})[0]
    rounded = run_as_written(int8.path, "int8", FRESH)
    assert (rounded.argmax(1) == exact.argmax(1)).mean() > 0.9
    assert ((rounded - exact) ** 2).mean() < 0.01 * exact.var()
    single = np.concatenate([run_as_written(int8.path, "int8", FRESH[i : i + 1]) for i in range(4)])
    # Sums in another order may fall on the other side of a rounding.
    np.testing.assert_allclose(single, rounded[:4], atol=0.02 * np.ptp(rounded))


def test_real_kernels_compute_what_the_file_says(int8: Rounded) -> None:
    """Whatever the processor: no product overflows."""
    openvino = pytest.importorskip("openvino")
    expected = run_as_written(int8.path, "int8", FRESH)
    tolerance = 0.05 * np.ptp(expected)
    logits = open_session(int8.path).run(["logits"], {"images": FRESH})[0]
    np.testing.assert_allclose(logits, expected, atol=tolerance)
    compiled = openvino.Core().compile_model(str(int8.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled([FRESH])[0], expected, atol=tolerance)


def test_trt_is_symmetric_with_both_sides_of_every_addition_rounded(int8_trt: Rounded) -> None:
    points = [node for node in int8_trt.proto.graph.node if node.op_type == "QuantizeLinear"]
    assert all(int8_trt.constants[node.input[2]].dtype == np.int8 for node in points)
    assert all(int8_trt.constants[node.input[2]] == 0 for node in points)
    assert len(int8_trt.additions()) == 9
    for node in int8_trt.additions():
        for name in node.input:
            assert int8_trt.maker(int8_trt.maker(name).input[0]).op_type == "QuantizeLinear"


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_the_shortcut_alone_of_every_addition_is_rounded_on_request(variant: str, tmp_path: Path) -> None:
    graph = export("resnet20", tmp_path / "fp16.onnx", "fp16", variant=variant)
    rounded = make(graph, tmp_path / "int8-trt.onnx", "int8-trt", additions="shortcut")
    assert len(rounded.additions()) == 9
    for node in rounded.additions():
        makers = [rounded.maker(name).op_type for name in node.input]
        assert sorted(makers) == ["Conv", "DequantizeLinear"]
    both = make(graph, tmp_path / "both.onnx", "int8-trt")
    answers = [run_as_written(each.path, "int8-trt", FRESH) for each in (rounded, both)]
    exact = run_as_written(graph, "fp16", FRESH)
    assert [((each - exact) ** 2).mean() < 0.02 * exact.var() for each in answers] == [True, True]


def test_trt_is_fp16_where_it_is_not_int8(int8_trt: Rounded) -> None:
    for layer in int8_trt.layers:
        values, scale, _ = (int8_trt.constants[name] for name in int8_trt.maker(layer.input[1]).input)
        exact = np.float32 if layer.op_type == "Gemm" else np.float16  # the head's logits stay float32
        assert (values.dtype, scale.dtype) == (np.int8, exact)
        assert np.abs(values.astype(int)).max() > 64  # the whole range
        assert int8_trt.constants[layer.input[2]].dtype == exact
    (logits,) = int8_trt.proto.graph.output
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_trt_answers_as_fp32_does(int8_trt: Rounded, fp32: Path) -> None:
    exact = open_session(fp32).run(["logits"], {"images": FRESH})[0]
    assert ((run_as_written(int8_trt.path, "int8-trt", FRESH) - exact) ** 2).mean() < 0.02 * exact.var()


@pytest.mark.parametrize(("variant", "additions"), [("v2", 9), ("highway", 9)])
def test_other_variants(variant: str, additions: int, tmp_path: Path) -> None:
    graph = export("resnet20", tmp_path / "fp32.onnx", variant=variant)
    rounded = make(graph, tmp_path / "int8.onnx")
    assert len(rounded.additions()) == additions
    exact = open_session(graph).run(["logits"], {"images": FRESH})[0]
    kernels = open_session(rounded.path).run(["logits"], {"images": FRESH})[0]
    assert ((kernels - exact) ** 2).mean() < 0.02 * exact.var()


def test_a_pooling_keeps_its_scale() -> None:
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["a"]),
        onnx.helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3]),
        onnx.helper.make_node("Conv", ["b", "w"], ["c"]),
    ]
    graph = onnx.helper.make_graph(nodes, "pooled", [], [])
    assert rounded_tensors(graph, [graph.node[2]]) == {"a": "a", "b": "a"}


def test_ranges_are_those_of_the_given_images(fp32: Path, int8: Rounded, tmp_path: Path) -> None:
    quantize(fp32, tmp_path / "int8.onnx", IMAGES // 4, precision="int8", dataset="dark")
    dark = Rounded(tmp_path / "int8.onnx", onnx.load(tmp_path / "int8.onnx")).constants
    scales = [name for name, value in int8.constants.items() if name.endswith(".scale") and value.ndim == 0]
    assert scales
    assert any(dark[name] < 0.8 * int8.constants[name] for name in scales)


def test_the_same_images_give_the_same_file(fp32: Path, int8: Rounded, tmp_path: Path) -> None:
    assert make(fp32, tmp_path / "again.onnx").path.read_bytes() == int8.path.read_bytes()


def test_layers_can_be_kept(fp32: Path, tmp_path: Path) -> None:
    found = sensitivities(fp32, IMAGES[:8])
    assert len(found) == 20
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert all(value > 0 for value in found.values())
    worst = next(iter(found))
    said = quantize(
        fp32, tmp_path / "int8.onnx", IMAGES, precision="int8", dataset="noise", kept_layers=[worst]
    )
    assert (said.kept_layers, said.weight_bits, said.num_images) == ((worst,), 7, len(IMAGES))
    rounded = Rounded(tmp_path / "int8.onnx", onnx.load(tmp_path / "int8.onnx"))
    for layer in rounded.layers:
        kept = rounded.constants.get(layer.input[1])
        assert (kept is not None and kept.dtype == np.float32) == (layer.name == worst)


def test_full_range_weights_are_for_who_asks(fp32: Path, tmp_path: Path) -> None:
    wide = make(fp32, tmp_path / "int8.onnx", weight_bits=8)
    largest = max(
        np.abs(v.astype(int)).max() for v in wide.constants.values() if v.dtype == np.int8 and v.ndim
    )
    assert largest > 64


def test_biases_take_up_the_mean_error(fp32: Path, int8: Rounded) -> None:
    exact = open_session(fp32).run(["logits"], {"images": IMAGES})[0]
    error = run_as_written(int8.path, "int8", IMAGES) - exact
    assert np.abs(error.mean(0)).max() < 0.05 * exact.std()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES[:0], "no images"),
        (IMAGES[:, :16], r"uint8 \[32, 16, 32, 3\]: the graph takes uint8 \[N, 32, 32, 3\]"),
        (IMAGES.astype(np.float32), r"float32 \[32, 32, 32, 3\]"),
    ],
)
def test_wrong_images(images: NDArray[np.uint8], message: str, fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=message):
        quantize(fp32, tmp_path / "int8.onnx", images, precision="int8", dataset="noise")
    assert not (tmp_path / "int8.onnx").exists()


def test_wrong_graphs(artifact: Path, fp32: Path, int8: Rounded, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="only a classify graph"):
        make(artifact / "introspect.fp32.onnx", tmp_path / "out.onnx")
    with pytest.raises(QuantizeError, match="quantized already"):
        make(int8.path, tmp_path / "out.onnx")
    with pytest.raises(QuantizeError, match="int8-trt from the fp16 one"):
        make(fp32, tmp_path / "out.onnx", "int8-trt")


def test_wrong_options(fp32: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="no layer nowhere: there are node_conv2d, "):
        make(fp32, tmp_path / "out.onnx", kept_layers=["nowhere"])
    with pytest.raises(QuantizeError, match="weights of 4 bits"):
        make(fp32, tmp_path / "out.onnx", weight_bits=4)
    with pytest.raises(QuantizeError, match="fp16 is not made by calibration"):
        make(fp32, tmp_path / "out.onnx", "fp16")  # type: ignore[arg-type]
    names = [node.name for node in onnx.load(fp32).graph.node if node.op_type in LAYERS]
    with pytest.raises(QuantizeError, match="no layer is left"):
        make(fp32, tmp_path / "out.onnx", kept_layers=names)


def test_rare_values_are_clipped() -> None:
    """The least squared error, not the extremes: one bright pixel in a million does not cost all a bit."""
    values = np.random.default_rng(0).uniform(0, 40, 100_000).astype(np.float32)

    def found(signed: bool = False) -> Range:
        return calibrate(lambda: iter([{"x": values[:50_000]}, {"x": values[50_000:]}]), 16, signed)["x"]

    assert found().high == pytest.approx(40, abs=2)
    values[70_000] = 255
    assert found().low == 0
    assert found().high < 128
    assert found(signed=True).low == -found(signed=True).high


# --- fine-tuning under rounding ------------------------------------------------------------------------


def test_fine_tuning_rounds_where_the_graph_does(fp32: Path, int8: Rounded) -> None:
    model = liven(build("resnet20", seed=1))
    preprocessing = metadata_for(model).preprocessing
    network = fuse_batchnorm(model)
    add_rounding(network, weight_bits=7)
    start_rounding(network, IMAGES, preprocessing)
    places = [module for module in network.modules() if isinstance(module, Rounding)]
    assert len(places) == 20 + 2 * 9
    assert all(place.range for place in places)
    with torch.no_grad():
        found = network(normalised(FRESH, preprocessing)).numpy()
    exact = open_session(fp32).run(["logits"], {"images": FRESH})[0]
    errors = [((logits - exact) ** 2).mean() for logits in (found, run_as_written(int8.path, "int8", FRESH))]
    assert errors[0] == pytest.approx(errors[1], rel=0.5)


def test_fine_tuning_learns_weights_and_leaves_no_rounding() -> None:
    model = liven(build("resnet20", seed=1))
    preprocessing = metadata_for(model).preprocessing
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned = fine_tune_under_rounding(
        model, preprocessing, IMAGES[:8], IMAGES[:16], epochs=1, learning_rate=1e-6
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fused = fuse_batchnorm(model)
    assert [name for name, _ in tuned.named_modules()] == [name for name, _ in fused.named_modules()]
    assert not torch.equal(tuned.head.weight, fused.head.weight)
    with torch.no_grad():
        logits, exact = (network(normalised(FRESH, preprocessing)) for network in (tuned, fused))
    assert ((logits - exact) ** 2).mean() < 1e-3 * exact.var()
