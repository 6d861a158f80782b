"""The graphs against the network, the gates that hold them, and the artifact that comes out."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from export.pipeline import ExportError, ValidationImages, export_artifact
from export.verify import GateError, open_session, source_input, synthetic_images
from models.manifest import MAPS, SCALARS, Manifest, ManifestError, map_slices, read_manifest
from models.resnet import ResNet, build
from tests.conftest import liven, metadata_for

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
        expected = source(source_input(IMAGES, manifest.preprocessing)).numpy()
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
        x = source_input(IMAGES, manifest.preprocessing)
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
        _, taps = source.forward_taps(source_input(IMAGES, manifest.preprocessing))
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
    classify, introspect = manifest.graphs
    assert classify.parity.batch_sizes == (1, 3, 8)
    assert 0 < classify.parity.max_abs_delta_logit < 1e-4
    assert classify.parity.sum_parity_max_abs is None
    assert introspect.parity.sum_parity_max_abs is not None
    assert introspect.parity.sum_parity_max_abs < 1e-4
    assert [block.shortcut for block in manifest.blocks].count("pad") == 2
    assert len(classify.golden_logits) == 10


def test_accuracy_is_measured_through_the_graph(tmp_path: Path) -> None:
    model = liven(build("resnet20", seed=2, width=4))
    images = synthetic_images(20, 32, seed=8)
    preprocessing = metadata_for(model).preprocessing
    with torch.inference_mode():
        ranks = model(source_input(images, preprocessing).float()).argsort(1, descending=True).numpy()
    labels = np.where(np.arange(20) < 5, ranks[:, 0], np.where(np.arange(20) < 12, ranks[:, 4], ranks[:, 9]))
    validation = ValidationImages("made up", images, labels)
    manifest = export_artifact(
        model, metadata_for(model), "m", tmp_path / "m", source="", weights_sha256="", validation=validation
    )
    for graph in manifest.graphs:
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
        export_artifact(model, metadata_for(model), "m", tmp_path / "m", source="", weights_sha256="")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_things_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    model = build("resnet20").eval()
    with pytest.raises(ExportError, match=r"holds thesis\.txt, which is no part of an artifact"):
        export_artifact(model, metadata_for(model), "m", tmp_path, source="", weights_sha256="")


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
