"""The OpenVINO engine answers as ONNX Runtime does, whatever the instances and the batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifact.manifest import Precision, read_manifest
from engines.engine import EngineError, EngineOptions, EngineUnavailable
from engines.machine import cpu_features
from engines.openvino import compile_properties, openvino
from engines.registry import modes, open_engine

ROOT = Path(__file__).resolve().parents[2]
INSTANCES = (1, 2)


@pytest.fixture(scope="module")
def inputs(artifact: Path) -> dict[str, np.ndarray]:
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    gates = np.random.default_rng(2).uniform(0, 1, (5, len(read_manifest(artifact).blocks)))
    return {"images": images, "gates": gates.astype(np.float32)}


def open_graph(artifact: Path, kind: Any, **options: Any) -> Any:
    graph = read_manifest(artifact).graph(kind)
    assert graph is not None
    return open_engine("openvino", artifact / graph.file, "fp32", EngineOptions(**options))


@pytest.mark.parametrize("instances", INSTANCES)
@pytest.mark.parametrize("threads", [2, 4])
def test_every_batch_size_gives_the_rows_of_onnxruntime(
    artifact: Path, inputs: dict[str, np.ndarray], instances: int, threads: int
) -> None:
    """Also more threads than cores."""
    graph = read_manifest(artifact).graph("introspect")
    assert graph is not None
    reference = open_engine("onnxruntime", artifact / graph.file, "fp32", EngineOptions("cpu")).run(inputs)
    engine = open_graph(artifact, "introspect", instances=instances, threads=threads)
    assert (engine.info.mode, engine.info.threads, engine.info.device) == ("cpu", threads, "cpu")
    for size in (5, 1, 2, 4):
        outputs = engine.run({name: array[:size] for name, array in inputs.items()})
        assert list(outputs) == list(reference)
        for name, array in outputs.items():
            np.testing.assert_allclose(array, reference[name][:size], atol=1e-4, rtol=1e-4)
    engine.close()


@pytest.mark.parametrize("instances", INSTANCES)
def test_outputs_belong_to_the_caller(artifact: Path, inputs: dict[str, np.ndarray], instances: int) -> None:
    engine = open_graph(artifact, "classify", instances=instances, threads=2)
    first = engine.run({"images": inputs["images"]})["logits"]
    kept = first.copy()
    engine.run({"images": 255 - inputs["images"]})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("instances", INSTANCES)
def test_what_it_would_take_in_silence_is_refused(
    artifact: Path, inputs: dict[str, np.ndarray], instances: int
) -> None:
    engine = open_graph(artifact, "introspect", instances=instances, threads=2)
    good = engine.run(inputs)["logits"]
    for wrong, message in (
        ({"images": inputs["images"]}, "inputs"),
        ({**inputs, "images": inputs["images"].astype(np.float32)}, "images is float32, not uint8"),
        ({**inputs, "images": inputs["images"][:, :16]}, "OpenVINO: "),
        ({**inputs, "gates": inputs["gates"][:, :3]}, "OpenVINO: "),
    ):
        with pytest.raises(EngineError, match=message):
            engine.run(wrong)
    np.testing.assert_array_equal(engine.run(inputs)["logits"], good)


def test_errors_are_ours(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=r"OpenVINO cannot open no\.onnx"):
        open_engine("openvino", tmp_path / "no.onnx", "fp32")
    with pytest.raises(EngineUnavailable, match="device cuda: the engine openvino runs on the CPU"):
        open_graph(artifact, "classify", device="cuda")
    with pytest.raises(EngineError, match="no mode 'fast'; there is: cpu"):
        open_graph(artifact, "classify", mode="fast")
    with pytest.raises(EngineUnavailable, match="use int8 on the CPU"):
        open_engine("openvino", artifact / read_manifest(artifact).graphs[0].file, "int8-trt")


def test_precisions_mean_what_they_say() -> None:
    """Never bf16 where fp32 is asked for, even on a processor that has it."""
    core = openvino.Core()
    options = EngineOptions(threads=8, instances=4)
    for precision in ("fp32", "int8"):
        properties = compile_properties(core, precision, options)  # type: ignore[arg-type]
        assert properties["INFERENCE_PRECISION_HINT"] == "f32"
        assert (properties["NUM_STREAMS"], properties["INFERENCE_NUM_THREADS"]) == (4, 8)
    has_bf16 = bool({"avx512_bf16", "amx_bf16"} & set(cpu_features()))
    if has_bf16 or sys.platform == "linux":
        hint = compile_properties(core, "bf16", options)["INFERENCE_PRECISION_HINT"]
        assert hint == ("bf16" if has_bf16 else "f32")


def test_modes_worth_trying() -> None:
    def of(precision: Precision, **options: Any) -> tuple[str, ...]:
        return modes("openvino", precision, EngineOptions(device="cpu", **options))

    assert of("fp32", threads=2, batch_sizes=(1, 8)) == of("int8", threads=1) == ("cpu",)
    assert of("int8-trt") == modes("openvino", "fp32", EngineOptions(device="cuda")) == ()


def test_it_reports_to_nobody_and_loads_quickly(artifact: Path) -> None:
    code = (
        "import sys; import engines.openvino;"
        "print([name for name in sys.modules if 'telemetry' in name or 'tools.ovc' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
