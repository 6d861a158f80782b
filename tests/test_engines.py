"""The ONNX Runtime engine runs a graph, chooses a device, and says clearly what it cannot do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.manifest import read_manifest
from service.engines import EngineError, EngineUnavailable
from service.engines.onnxruntime import OnnxRuntimeEngine, _num_gpus, auto_threads, num_cores


def test_runs_both_graphs_at_several_batch_sizes(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    gates = np.ones((5, len(manifest.blocks)), np.float32)
    logits = {}
    for kind, inputs in (
        ("classify", {"images": images}),
        ("introspect", {"images": images, "gates": gates}),
    ):
        graph = manifest.graph(kind)  # type: ignore[arg-type]
        assert graph is not None
        engine = OnnxRuntimeEngine(artifact / graph.file, "cpu")
        together = engine.run(inputs)
        assert list(together) == [output.name for output in graph.outputs]
        alone = engine.run({name: array[2:3] for name, array in inputs.items()})
        np.testing.assert_allclose(alone["logits"][0], together["logits"][2], atol=1e-4)
        logits[graph.kind] = together["logits"]
    np.testing.assert_allclose(logits["classify"], logits["introspect"], atol=1e-4)


def test_info(artifact: Path) -> None:
    graph = read_manifest(artifact).graphs[0]
    info = OnnxRuntimeEngine(artifact / graph.file, "cpu", threads=1).info
    assert (info.name, info.device, info.threads) == ("onnxruntime", "cpu", 1)
    assert OnnxRuntimeEngine(artifact / graph.file, "cpu").info.threads == auto_threads() <= num_cores()


@pytest.mark.skipif(_num_gpus() > 0, reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_silent(artifact: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph = read_manifest(artifact).graphs[0]
    assert OnnxRuntimeEngine(artifact / graph.file, "auto").info.device == "cpu"
    assert capfd.readouterr() == ("", "")
    with pytest.raises(EngineUnavailable, match="device cuda: ONNX Runtime cannot use it: "):
        OnnxRuntimeEngine(artifact / graph.file, "cuda")


@pytest.mark.skipif(_num_gpus() == 0, reason="this machine has no GPU")
def test_on_a_gpu_the_logits_are_those_of_the_cpu(artifact: Path) -> None:
    graph = read_manifest(artifact).graphs[0]
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    on_cpu, on_gpu = (
        OnnxRuntimeEngine(artifact / graph.file, device).run({"images": images}) for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_gpu["logits"], on_cpu["logits"], atol=graph.golden_tolerance)


def test_errors_are_ours(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=r"cannot open no\.onnx"):
        OnnxRuntimeEngine(tmp_path / "no.onnx", "cpu")
    engine = OnnxRuntimeEngine(artifact / read_manifest(artifact).graphs[0].file, "cpu")
    with pytest.raises(EngineError, match="ONNX Runtime: "):
        engine.run({"images": np.zeros((1, 32, 32, 3), np.float32)})
