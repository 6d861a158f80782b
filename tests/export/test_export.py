"""The graphs against the network, the gates that hold them, and the artifact that comes out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from artifact.manifest import (
    MAPS,
    SCALARS,
    Graph,
    Manifest,
    ManifestError,
    Precision,
    map_slices,
    read_manifest,
)
from engines.engine import EngineName
from export.images import CalibrationImages, ValidationImages
from export.network import Network, Origin
from export.pipeline import ExportError, export_artifact
from export.precisions import KINDS, ExportPlan, PrecisionError, PrecisionRequest
from export.random_weights import random_model
from export.reference import measure_reference
from export.verify import GateError, open_session, synthetic_images
from models.checkpoint import CheckpointMetadata
from models.pixels import normalised
from models.resnet import ResNet, build
from models.zoo import ZOO
from service.runtime.loading import load_model
from service.runtime.opening import LoadError
from service.settings import Settings
from tests.support.networks import liven, metadata_for, network_of

IMAGES = synthetic_images(3, 32, seed=4)


@pytest.fixture(scope="module")
def manifest(artifact: Path) -> Manifest:
    return read_manifest(artifact)


@pytest.fixture(scope="module")
def source() -> ResNet:
    """The network that the fixture `artifact` was made from, in float64."""
    return liven(build("resnet20", seed=1)).double()


def run(artifact: Path, kind: str, **inputs: NDArray[np.generic]) -> dict[str, NDArray[np.float32]]:
    session = open_session(artifact / f"{kind}.fp32.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def test_classify_and_introspect_agree_with_the_source(
    artifact: Path, manifest: Manifest, source: ResNet
) -> None:
    with torch.inference_mode():
        expected = source(normalised(IMAGES, manifest.preprocessing, torch.float64)).numpy()
    classify = run(artifact, "classify", images=IMAGES)["logits"]
    introspect = run(artifact, "introspect", images=IMAGES, gates=np.ones((3, 9), np.float32))["logits"]
    assert np.allclose(classify, expected, rtol=0, atol=1e-4)
    assert np.allclose(introspect, expected, rtol=0, atol=1e-4)


def test_maps_and_scalars_are_what_the_source_computes(
    artifact: Path, manifest: Manifest, source: ResNet
) -> None:
    """Every number of the graph against float64 on the unfused network's own tensors, with gates."""
    gates = np.random.default_rng(0).uniform(0, 1.5, (3, 9)).astype(np.float32)
    outputs = run(artifact, "introspect", images=IMAGES, gates=gates)
    with torch.inference_mode():
        x = normalised(IMAGES, manifest.preprocessing, torch.float64)
        _, taps = source.forward_taps(x, torch.from_numpy(gates).double())
    for number, (tap, where) in enumerate(zip(taps.values(), map_slices(manifest.blocks), strict=True)):
        f, s, u, y = (t.numpy() for t in tap)
        maps = outputs["maps"][:, :, where]
        for row, tensor in enumerate((f, s, u, y)):
            assert np.allclose(maps[:, row], np.sqrt((tensor**2).mean(1)).reshape(3, -1), atol=1e-5), MAPS[
                row
            ]
        fc, sc = f.mean((2, 3)), s.mean((2, 3))
        expected = [
            *((t**2).mean((1, 2, 3)) for t in (f, s, u, y)),
            *(t.mean(1) for t in (fc, fc**2, sc**2, fc * sc)),
            *(t.mean((1, 2, 3)) for t in (u > 0, s > 0, (u > 0) & (s > 0))),
        ]
        for name, got, wanted in zip(SCALARS, outputs["scalars"][:, number].T, expected, strict=True):
            # The fractions count signs, and a sum within rounding of 0 may fall on either side.
            assert np.allclose(got, wanted, rtol=1e-4, atol=2e-3 if "active" in name else 1e-5), name


def test_named_tensors_add_up_to_the_network_s_own_sum(
    artifact: Path, manifest: Manifest, source: ResNet
) -> None:
    """Anyone can ask an engine for F and s by name; together they are the unfused network's sum."""
    proto = onnx.load(artifact / "introspect.fp32.onnx")
    wanted = ["stage2.0.residual", "stage2.0.shortcut", "stage2.0.sum"]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    session = open_session(proto.SerializeToString())
    f, s, u = session.run(wanted, {"images": IMAGES, "gates": np.ones((3, 9), np.float32)})
    with torch.inference_mode():
        _, taps = source.forward_taps(normalised(IMAGES, manifest.preprocessing, torch.float64))
    assert np.allclose(f + s, taps["stage2.0"].total.numpy(), rtol=0, atol=1e-4)
    assert np.array_equal(f + s, u)


def test_graphs_are_clean(artifact: Path, manifest: Manifest) -> None:
    for graph in manifest.graphs:
        proto = onnx.load(artifact / graph.file)
        operators = Counter(node.op_type for node in proto.graph.node)
        assert operators["BatchNormalization"] == 0
        assert operators["Conv"] == 19
        assert operators["Transpose"] == 1
        assert graph.opset == next(o.version for o in proto.opset_import if o.domain == "")
        assert graph.inputs[0].dtype == "uint8"
        assert isinstance(graph.inputs[0].shape[0], str)
        assert graph.inputs[0].shape[1:] == (32, 32, 3)
    assert Counter(n.op_type for n in onnx.load(artifact / "classify.fp32.onnx").graph.node)["Cast"] == 1


def test_the_manifest_says_what_was_measured(artifact: Path, manifest: Manifest) -> None:
    classify, introspect, attribute = manifest.graphs
    assert classify.parity.batch_sizes == (1, 3, 8)
    assert 0 < classify.parity.max_abs_delta_logit < 1e-4
    assert classify.parity.sum_parity_max_abs is None
    assert introspect.parity.sum_parity_max_abs is not None
    assert introspect.parity.sum_parity_max_abs < 1e-4
    assert introspect.parity.completeness_max_abs is None
    assert attribute.parity.sum_parity_max_abs == pytest.approx(introspect.parity.sum_parity_max_abs, rel=0.5)
    assert attribute.parity.completeness_max_abs is not None
    assert 0 < attribute.parity.completeness_max_abs < 1e-4
    assert manifest.reference is None
    assert [block.shortcut for block in manifest.blocks].count("pad") == 2
    assert len(classify.golden_logits) == 10


def test_accuracy_is_measured_through_the_graph(tmp_path: Path) -> None:
    model = liven(build("resnet20", depths=(1,), seed=2, width=4))
    images = synthetic_images(20, 32, seed=8)
    preprocessing = metadata_for(model).preprocessing
    with torch.inference_mode():
        ranks = (
            model(normalised(images, preprocessing, torch.float64).float())
            .argsort(1, descending=True)
            .numpy()
        )
    labels = np.where(np.arange(20) < 5, ranks[:, 0], np.where(np.arange(20) < 12, ranks[:, 4], ranks[:, 9]))
    validation = ValidationImages("made up", images, labels)
    manifest = export_artifact(
        network_of(model),
        "m",
        tmp_path / "m",
        ExportPlan(validation=validation, measure_reference=measure_reference),
    )
    assert manifest.reference is not None
    assert (manifest.reference.dataset, manifest.reference.num_images) == ("made up", 20)
    assert read_manifest(tmp_path / "m") == manifest
    *measured, attribute = manifest.graphs
    assert attribute.accuracy is None  # it is the network of introspect
    for graph in measured:
        assert graph.accuracy is not None
        assert (graph.accuracy.top1, graph.accuracy.top5) == (0.25, 0.6)


def test_a_failed_gate_names_the_figure_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fusing that forgets a BatchNorm's shift is the mistake that the gate is there for."""
    from export import graph

    fuse = graph.fuse_batchnorm

    def forgetful(model: ResNet) -> ResNet:
        fused = fuse(model)
        fused.stem.conv.bias.data.zero_()
        return fused

    monkeypatch.setattr(graph, "fuse_batchnorm", forgetful)
    model = liven(build("resnet20", width=4))
    with pytest.raises(GateError, match=r"classify: logits differ .* by .* at batch 1"):
        export_artifact(network_of(model), "m", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# --- other precisions --------------------------------------------------------------------------------

CALIBRATION = CalibrationImages("made up", synthetic_images(32, 32, seed=11))
OTHERS: tuple[Precision, ...] = ("bf16", "fp16", "int8", "int8-trt")


def few_blocks(
    depths: tuple[int, ...], width: int, seed: int
) -> tuple[ResNet, CheckpointMetadata, ValidationImages]:
    """A small random network, and images with its own answers for labels: it is right about all of them."""
    row = replace(
        ZOO["resnet20"],
        name="small",
        depths=depths,
        width=width,
        aliases=(),
        num_parameters=None,
        num_macs=None,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ZOO, "small", row)
        model, metadata = random_model("small", seed)
    images = synthetic_images(64, 32, seed=12)
    with torch.inference_mode():
        labels = model(normalised(images, metadata.preprocessing, torch.float64).float()).argmax(1)
    return model, metadata, ValidationImages("its own answers", images, labels.numpy())


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network in every precision."""
    model, metadata, validation = few_blocks((1, 1), width=16, seed=10)
    out = tmp_path_factory.mktemp("several") / "small"
    export_artifact(
        Network(model, metadata, Origin("random weights", "0" * 64)),
        "small",
        out,
        ExportPlan((*OTHERS, "fp32", "int8"), CALIBRATION, validation),
    )
    return out


def test_every_precision_has_its_graphs(several: Path) -> None:
    manifest = read_manifest(several)
    made = [(graph.kind, graph.precision) for graph in manifest.graphs]
    assert made == [(kind, name) for name in ("fp32", *OTHERS) for kind in KINDS[name]]
    assert len(made) == 11
    for graph in manifest.graphs:
        assert graph.file == f"{graph.kind}.{graph.precision}.onnx"
        assert graph.num_bytes == (several / graph.file).stat().st_size
        assert [tensor.dtype for tensor in graph.outputs] == ["float32"] * len(graph.outputs)
        assert graph.inputs[0].dtype == "uint8"
    opsets = {graph.precision: graph.opset for graph in manifest.graphs}
    assert opsets == {"fp32": 20, "fp16": 20, "int8": 20, "int8-trt": 20, "bf16": 22}
    assert {path.name for path in several.iterdir()} == {"manifest.json", *manifest.files()}


def test_every_precision_says_what_it_costs(several: Path) -> None:
    graphs = {(graph.kind, graph.precision): graph for graph in read_manifest(several).graphs}
    for (kind, precision), graph in graphs.items():
        fp32 = graphs[kind, "fp32"]
        if kind == "attribute" or (kind == "introspect" and precision != "fp32"):
            assert (graph.accuracy, graph.verdict) == (None, None)
            continue
        assert graph.accuracy is not None
        assert (graph.accuracy.num_images, graph.accuracy.dataset) == (64, "its own answers")
        logit_range = max(1.0, graph.parity.logit_range)
        if precision == "fp32":
            assert (graph.verdict, graph.accuracy.agreement, graph.accuracy.top1) == (None, None, 1)
            assert graph.golden_tolerance == pytest.approx(1e-2 * logit_range)
            continue
        assert graph.verdict is not None
        assert graph.verdict.startswith(f"{precision} loses ")
        assert graph.accuracy.agreement is not None
        assert graph.accuracy.agreement >= graph.accuracy.top1 > 0.9  # less by ties
        assert graph.num_bytes < (0.55 if kind == "classify" else 0.75) * fp32.num_bytes
        if graph.quantization is None:
            assert fp32.parity.max_abs_delta_logit < graph.parity.max_abs_delta_logit < 5e-2 * logit_range
            assert graph.golden_logits == fp32.golden_logits
        else:
            assert graph.golden_logits != fp32.golden_logits
            assert np.allclose(graph.golden_logits, fp32.golden_logits, atol=0.2 * logit_range)
        assert 0 < graph.golden_tolerance < 0.2 * logit_range


def test_int8_says_how_it_was_made(several: Path) -> None:
    for graph in read_manifest(several).graphs:
        bits = {"int8": 7, "int8-trt": 8}.get(graph.precision)
        if bits is None:
            assert graph.quantization is None
            continue
        assert graph.quantization is not None
        assert (graph.quantization.dataset, graph.quantization.num_images) == ("made up", 32)
        assert (graph.quantization.weight_bits, graph.quantization.qat_epochs) == (bits, 0)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [
        ("onnxruntime", "fp32"),
        ("onnxruntime", "fp16"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "fp16"),
        ("openvino", "int8"),
        ("torch", "fp32"),
        ("torch", "bf16"),
        ("torch", "fp16"),
    ],
)
def test_what_is_exported_is_served(several: Path, engine: EngineName, precision: Precision) -> None:
    """Through the golden check, on this machine."""
    pytest.importorskip(engine)
    settings = Settings(engine=engine, precision=precision, device="cpu", threads=1, max_batch_size=2)
    model = load_model(several, settings)
    try:
        assert (model.precision, model.engine.name) == (precision, engine)
        assert model.introspect is not None
        assert "int8" not in model.graphs["introspect"].precision
    finally:
        model.close()


def test_int8_for_a_gpu_is_not_for_a_cpu(several: Path) -> None:
    with pytest.raises(LoadError, match="int8-trt"):
        load_model(several, Settings(precision="int8-trt", device="cpu", threads=1, max_batch_size=1))


def test_a_precision_that_loses_too_much_is_not_exported(tmp_path: Path) -> None:
    """int8 with ranges of grey images: everything brighter and darker is cut."""
    model, metadata, validation = few_blocks((1,), width=8, seed=9)
    grey = CalibrationImages("grey", np.full((8, 32, 32, 3), 120, np.uint8))

    def export(allow_loss: bool) -> Graph:
        manifest = export_artifact(
            Network(model, metadata, Origin("", "")),
            "m",
            tmp_path / "m",
            ExportPlan(("int8",), grey, validation, allow_loss=allow_loss, keep_layers=1),
        )
        graph = manifest.graph("classify", "int8")
        assert graph is not None
        return graph

    with pytest.raises(GateError, match=r"^int8 loses \d\d\.\d\d point of top-1 .* --allow-loss exports it"):
        export(allow_loss=False)
    assert list(tmp_path.iterdir()) == []
    lossy = export(allow_loss=True)
    assert lossy.verdict is not None
    assert lossy.verdict.endswith("but --allow-loss let it pass.")
    assert lossy.accuracy is not None
    assert lossy.accuracy.top1 < 0.8
    assert lossy.quantization is not None
    assert len(lossy.quantization.kept_layers) == 1
    assert read_manifest(tmp_path / "m").graphs[-1] == lossy


def test_precisions_that_cannot_be() -> None:
    with pytest.raises(PrecisionError, match=r"^--precision int4: there is no such; choose from fp32, "):
        PrecisionRequest(("fp16", "int4"))  # type: ignore[arg-type]
    for name in ("int8", "int8-trt"):
        with pytest.raises(PrecisionError, match=f"^--precision {name} needs --calibration: "):
            PrecisionRequest(("fp16", name))
    assert PrecisionRequest(("int8",), "photographs").num_calibration == 512
    assert ExportPlan(("fp16", "fp32", "fp16")).all_precisions == ("fp32", "fp16")


# --- what is at its place already ----------------------------------------------------------------------


def test_a_folder_of_other_things_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    model = build("resnet20").eval()
    with pytest.raises(ExportError, match=r"holds thesis\.txt, which is no part of an artifact"):
        export_artifact(network_of(model), "m", tmp_path)


def test_damaged_artifacts_are_refused(artifact: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(artifact, tmp_path / name))

    graph = damaged("graph") / "classify.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    with pytest.raises(ManifestError, match="differs from the SHA-256"):
        read_manifest(graph.parent)
    assert read_manifest(graph.parent, verify=False).name == "resnet20"

    (damaged("lacking") / "golden.png").unlink()
    with pytest.raises(ManifestError, match=r"lacks the file golden\.png"):
        read_manifest(tmp_path / "lacking")

    file = damaged("outside") / "manifest.json"
    document = json.loads(file.read_text())
    document["golden_image"] = "../golden.png"
    file.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="outside of the artifact"):
        read_manifest(file.parent)

    document["format"] = 2
    file.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=r"not a manifest of format 1: format"):
        read_manifest(file.parent)
    with pytest.raises(ManifestError, match="no artifact at"):
        read_manifest(tmp_path / "absent")
