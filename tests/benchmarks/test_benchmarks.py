"""benchmarks: theory, engines, aims, soak_batches, introspection. What is said of timings, never a timing."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from artifact.manifest import read_manifest
from benchmarks import introspection
from benchmarks.aims import judge, print_aims
from benchmarks.engines import BenchError, bench_engines
from benchmarks.peers.introspection import rows_of, time_slice
from benchmarks.subjects import FloatInput
from benchmarks.theory import Machine, cost_of, cpu_ceiling, intensity
from engines.registry import engines_for, open_engine
from models.count import count
from models.resnet import build
from models.zoo import ZOO
from service.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
PINS = (ROOT / "benchmarks" / "peers" / "introspection.txt", ROOT / "constraints.txt")
NUMBERS = (
    "p50_ms", "p99_ms", "images_per_s", "gmacs_per_s", "ratio_to_ort_fp32", "max_abs_delta_logit",
    "top1_agreement", "golden_error",
)  # fmt: skip
NO_AMX = Machine("cpu", "a processor", 2, 2.0, ("avx2", "fma"), None, {}, 1e9, 1e9)
AMX = Machine("cpu", "a processor", 2, 2.0, ("amx_tile", "amx_int8", "amx_bf16"), None, {}, 1e9, 1e9)


# --- theory ------------------------------------------------------------------------------------------


def test_cost_of_a_graph_made_by_hand(tmp_path: Path) -> None:
    """3 x 8 x 8 -> conv 3 x 3, stride 2 -> 4 x 4 x 4, added to itself -> mean -> 5 classes."""
    constants = {"weight": (4, 3, 3, 3), "bias": (4,), "head": (4, 5)}
    nodes = [
        helper.make_node("Conv", ["x", "weight", "bias"], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Add", ["y", "y"], ["z"]),
        helper.make_node("GlobalAveragePool", ["z"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in constants.items()],
    )
    onnx.save(helper.make_model(graph), tmp_path / "graph.onnx")
    cost = cost_of(tmp_path / "graph.onnx")
    assert cost.macs == 4 * 3 * 9 * 16 + 4 * 5
    assert cost.weight_bytes == 4 * (108 + 4 + 20)
    assert cost.activations == (3 * 64 + 64) + 64 + (64 + 4) + (4 + 5)
    assert intensity(cost, "fp32", 2) == 2 * cost.macs / (cost.weight_bytes / 2 + 4 * cost.activations)


def test_cost_of_an_artifact_is_what_the_network_costs(artifact: Path) -> None:
    cost = cost_of(artifact / "classify.fp32.onnx")
    counted = count(ZOO["resnet20"])
    assert cost.macs == counted.num_macs
    assert cost.weight_bytes == pytest.approx(4 * counted.num_parameters, rel=0.02)  # BatchNorms are gone


def test_ceilings() -> None:
    assert cpu_ceiling("fp32", ("avx2", "fma"), 2, 2.25) == 2 * 2.25e9 * 16
    assert cpu_ceiling("int8", ("avx2", "fma", "avx512f", "avx512_vnni", "amx_int8"), 1, 2.0) == 2e9 * 1024
    assert cpu_ceiling("fp32", ("asimd",), 4, 3.0) is None
    assert cpu_ceiling("fp32", ("fma",), 4, None) is None


# --- engines -----------------------------------------------------------------------------------------


def test_bench_prints_theory_then_the_table_then_json(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(device="cpu", threads=1)
    returned = bench_engines([str(artifact)], settings, seconds=0.02, batches=(1, 3), quick=True)
    out = capsys.readouterr().out
    assert out.index("theory ") < out.index("p50 ms") < out.index("\naims: ")
    assert "not applicable" in out
    document = json.loads(out.splitlines()[-1])
    assert document == json.loads(json.dumps(returned))
    (model,) = document["models"]
    assert model["macs"] == count(ZOO["resnet20"]).num_macs
    manifest = read_manifest(artifact)
    found = {(row["engine"], row["graph"], row["batch"]) for row in model["rows"]}
    for graph in manifest.graphs:
        assert {("onnxruntime", graph.kind, 1), ("onnxruntime", graph.kind, 3)} <= found
        assert {engine for engine, _, _ in found} <= set(engines_for(graph.precision))
    assert ("onnxruntime", "float input", 3) in found
    for row in model["rows"]:
        assert row["right"]
        assert all(math.isfinite(row[name]) for name in NUMBERS)
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["max_abs_delta_logit"] < 1e-3
        assert row["top1_agreement"] == 1
        assert row["gmacs_per_s"] == pytest.approx(row["images_per_s"] * model["macs"] / 1e9)
        if row["engine"] == "onnxruntime" and row["graph"] != "float input":
            assert row["ratio_to_ort_fp32"] == 1
        assert row["ratio_to_classify"] == 1 or row["graph"] != "classify"


def test_a_wrong_answer_gets_no_speed(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(artifact, copy)
    document = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    for graph in document["graphs"]:
        if graph["kind"] == "introspect":
            graph["golden_logits"][0] += 1.0
    (copy / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    settings = load_settings(engine="onnxruntime", device="cpu", threads=1)
    rows = bench_engines([str(copy)], settings, seconds=0.01, batches=(2,))["models"][0]["rows"]
    wrong = [row for row in rows if row["graph"] == "introspect"]
    right = [row for row in rows if row["graph"] != "introspect"]
    assert all(row["right"] and row["images_per_s"] > 0 for row in right)
    assert {(row["right"], row["images_per_s"], row["ratio_to_classify"]) for row in wrong} == {
        (False, None, None)
    }
    table = capsys.readouterr().out
    assert sum("wrong" in line.split() for line in table.splitlines()) == len(wrong) == 1


def test_the_graph_that_takes_floats_is_the_same_network(artifact: Path, tmp_path: Path) -> None:
    graph = artifact / "classify.fp32.onnx"
    cut = FloatInput(graph, tmp_path / "float.onnx")
    assert {"Transpose", "Cast", "Sub"}.isdisjoint(node.op_type for node in onnx.load(cut.path).graph.node)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    floats = cut.normalise(images)
    assert (floats.dtype, floats.shape) == (np.float32, (3, 3, 32, 32))
    with_uint8 = open_engine("onnxruntime", graph, "fp32").run({"images": images})
    with_floats = open_engine("onnxruntime", cut.path, "fp32").run({cut.name: floats})
    np.testing.assert_array_equal(with_floats["logits"], with_uint8["logits"])


# --- aims --------------------------------------------------------------------------------------------


def row(graph: str, engine: str, precision: str, rate: float | None, **more: float | None) -> dict[str, Any]:
    ratios = {"ratio_to_ort_fp32": None, "ratio_to_classify": None, "p50_ms": 1.0}
    names = {"graph": graph, "engine": engine, "precision": precision, "batch": 8, "images_per_s": rate}
    return names | ratios | more


def test_aims(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row("classify", "openvino", "int8", 50, ratio_to_ort_fp32=2.0),
        row("classify", "openvino", "int8", 300, ratio_to_ort_fp32=9.0),  # the fastest row speaks
        row("classify", "onnxruntime", "int8", 80, ratio_to_ort_fp32=2.9),
        row("classify", "openvino", "bf16", None),  # wrong, so it was not timed
        row("introspect", "openvino", "fp32", 30, ratio_to_classify=0.75),
        row("float input", "onnxruntime", "fp32", 40, ratio_to_classify=1.04),
    ]
    met = {aim["aim"]: aim["met"] for aim in judge("resnet50", 224, rows, AMX)}
    assert met["OpenVINO int8 / ORT fp32"] is True
    assert met["ORT int8 / ORT fp32"] is False
    assert met["OpenVINO bf16 / ORT fp32"] is None
    assert met["introspect / classify, OpenVINO fp32"] is True
    assert met["uint8 against float input, ORT fp32, %"] is False
    why = {aim["aim"]: aim["why"] for aim in judge("resnet50", 224, rows, NO_AMX)}
    assert why["OpenVINO int8 / ORT fp32"] == "no AMX"
    assert why["fp16 ms at batch 1"] == "no GPU"
    assert why["introspect / classify, OpenVINO fp32"] is None
    other = {aim["aim"]: aim["why"] for aim in judge("resnet18", 64, rows, AMX)}
    assert other["OpenVINO int8 / ORT fp32"] == "only for ResNet-50 at 224 pixels"
    print_aims(judge("resnet50", 224, rows, NO_AMX))
    told = capsys.readouterr().out
    assert told.count("\n") == 1
    assert "not applicable, no AMX: OpenVINO int8 / ORT fp32 >= 8.5" in told
    assert "uint8 against float input, ORT fp32, % <= 3: 4.00, NOT met" in told


# --- soak_batches ------------------------------------------------------------------------------------


def test_soak_batches_ends_with_json(artifact: Path, tmp_path: Path) -> None:
    flags = ["--model", artifact, "--runs", "24", "--max-batch-size", "5", "--engine", "onnxruntime"]
    flags += ["--threads", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak_batches", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    document = json.loads(done.stdout.splitlines()[-1])
    assert (document["groups"], document["wrong"]) == (24, 0)
    assert 24 <= document["images"] <= 24 * 5
    assert document["memory_mib"]["peak"] >= document["memory_mib"]["start"] > 10
    assert done.returncode == (0 if document["passed"] else 1), done.stderr


@pytest.mark.parametrize(
    ("seconds", "batches", "message"),
    [
        (0.0, (), "--seconds 0: must be above 0"),
        (float("nan"), (), "--seconds nan: must be above 0"),
        (1.0, (8, 0), "--batch 0: must be 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(seconds: float, batches: tuple[int, ...], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        bench_engines([], load_settings(), seconds=seconds, batches=batches)


# --- introspection -----------------------------------------------------------------------------------------


def test_introspection_is_timed_beside_classify(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours alone: the peers have a venv of their own."""
    arguments = ["--model", str(artifact), "--seconds", "0.001", "--rounds", "1", "--no-peers"]
    assert introspection.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.index("theory: ") < out.index("x attribute")
    document = json.loads(out.splitlines()[-1])
    (model,) = document["models"]
    rows = {row["row"]: row for row in model["rows"]}
    assert {f"HTTP: {title}" for title, _ in introspection.FORMS} <= rows.keys()
    for kind in ("classify", "introspect", "attribute", "all lesions, 10 rows"):
        assert rows[f"onnxruntime: {kind}"]["ms"] > 0
    assert rows["onnxruntime: classify"]["x_own"] == rows["onnxruntime: attribute"]["x_ours"] == 1


def test_peers_that_are_not_there_say_so() -> None:
    model = build("resnet20", depths=(1, 1), width=4).eval()
    rows, missing = rows_of(model, torch.zeros(1, 3, 32, 32))
    assert next(iter(rows)) == "torch: the forward pass alone"
    assert len(time_slice(rows["torch: the forward pass alone"], 1e-9)) == 1
    there = {title.partition(" ")[0] for title in rows}
    assert there | missing.keys() == {"torch:", "captum", "grad-cam", "torchlens"}
    assert not there & missing.keys()


def test_peers_run_on_the_versions_that_we_do() -> None:
    peers, ours = (dict(re.findall(r"^([\w-]+)==(\S+)$", path.read_text(), re.MULTILINE)) for path in PINS)
    shared = {"numpy", "pydantic", "torch", "torchvision"}
    assert {name: peers[name] for name in shared} == {name: ours[name] for name in shared}
