"""Engines run a graph, choose a device, and say clearly what they cannot do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest

from artifact.manifest import Precision, read_manifest
from engines import tensorrt
from engines.bindings import BoundSession
from engines.engine import Engine, EngineError, EngineName, EngineOptions, EngineUnavailable
from engines.instances import Instances
from engines.machine import auto_threads, cpu_features, cpu_name, num_cores, num_gpus, pin_memory
from engines.onnxruntime import CPU, OnnxRuntimeEngine, cuda_options, open_session
from engines.registry import ENGINES, installed_version, instance_counts, modes, open_engine

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = EngineOptions(device="cpu")


@pytest.fixture(scope="module")
def classify(artifact: Path) -> Path:
    return artifact / read_manifest(artifact).graphs[0].file


@pytest.fixture(scope="module")
def inputs(artifact: Path) -> dict[str, np.ndarray]:
    """Five rows for the attribute graph, which takes what the others take too."""
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    gates = np.ones((5, len(read_manifest(artifact).blocks)), np.float32)
    return {"images": images, "gates": gates, "target": np.arange(-1, 4)}


def test_runs_all_graphs_at_several_batch_sizes(artifact: Path, inputs: dict[str, np.ndarray]) -> None:
    manifest = read_manifest(artifact)
    logits = {}
    for graph in manifest.graphs:
        engine = open_engine("onnxruntime", artifact / graph.file, graph.precision, ON_CPU)
        rows = {tensor.name: inputs[tensor.name] for tensor in graph.inputs}
        together = engine.run(rows)
        assert list(together) == [output.name for output in graph.outputs]
        alone = engine.run({name: array[2:3] for name, array in rows.items()})
        np.testing.assert_allclose(alone["logits"][0], together["logits"][2], atol=1e-4)
        logits[graph.kind] = together["logits"]
        engine.close()
    np.testing.assert_allclose(logits["classify"], logits["introspect"], atol=1e-4)
    np.testing.assert_allclose(logits["classify"], logits["attribute"], atol=1e-4)


def test_info(classify: Path) -> None:
    info = OnnxRuntimeEngine(classify, "fp32", EngineOptions(device="cpu", threads=1)).info
    assert (info.name, info.device, info.threads, info.mode) == ("onnxruntime", "cpu", 1, "cpu")
    assert OnnxRuntimeEngine(classify, "fp32", ON_CPU).info.threads == auto_threads() <= num_cores()
    assert info.version == installed_version("onnxruntime")


ON_EACH_ENGINE = pytest.mark.parametrize("name", [name for name in ENGINES if installed_version(name)])
TIMEOUT_S = 60  # of a test that would else hang where it should fail


def open_instances(name: EngineName, graph: Path, instances: int, threads: int = 2) -> Engine:
    return open_engine(name, graph, "fp32", EngineOptions("cpu", threads=threads, instances=instances))


@ON_EACH_ENGINE
@pytest.mark.parametrize(
    ("threads", "instances", "expected"), [(2, 1, 2), (2, 2, 2), (3, 2, 2), (1, 2, 2), (4, 2, 4)]
)
def test_instances_share_the_threads(
    classify: Path, name: EngineName, threads: int, instances: int, expected: int
) -> None:
    """An equal share each, and one at least."""
    with closing(open_instances(name, classify, instances, threads)) as engine:
        assert (engine.info.instances, engine.info.threads) == (instances, expected)


@ON_EACH_ENGINE
@pytest.mark.parametrize("threads", [2, 4])
def test_callers_at_once_get_their_own_rows(artifact: Path, name: EngineName, threads: int) -> None:
    """Four threads and two instances, of one thread or two: no row is another's, none changes afterwards."""
    graph = read_manifest(artifact).graphs[0]
    images = np.random.default_rng(3).integers(0, 256, (4, 6, 3, 32, 32, 3), np.uint8)
    with closing(open_instances(name, artifact / graph.file, 1)) as alone:
        expected = [[alone.run({"images": batch})["logits"] for batch in caller] for caller in images]
    assert np.abs(np.diff(np.concatenate(expected).reshape(-1, 10), axis=0)).max(1).min() > 0.01

    def call(caller: int) -> list[Any]:
        return [engine.run({"images": batch[: 1 + n % 3]}) for n, batch in enumerate(images[caller])]

    with (
        closing(open_instances(name, artifact / graph.file, 2, threads)) as engine,
        ThreadPoolExecutor(4) as callers,
    ):
        answers = list(callers.map(call, range(4), timeout=TIMEOUT_S))
    for caller, batches in enumerate(answers):
        for n, outputs in enumerate(batches):
            np.testing.assert_allclose(outputs["logits"], expected[caller][n][: 1 + n % 3], atol=1e-3)


@ON_EACH_ENGINE
def test_two_instances_run_at_once_and_a_third_run_waits(
    classify: Path, inputs: dict[str, np.ndarray], name: EngineName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs must meet to go on, while they have an instance; the third meets the fourth, after them."""
    both = Barrier(2)
    lent = Instances.lent
    inside: list[int] = []

    @contextmanager
    def meeting(self: Instances[Any]) -> Iterator[Any]:
        with lent(self) as item:
            inside.append(+1)
            both.wait(TIMEOUT_S)
            yield item
            inside.append(-1)

    with closing(open_instances(name, classify, 2)) as engine, ThreadPoolExecutor(4) as callers:
        monkeypatch.setattr(Instances, "lent", meeting)
        runs = [callers.submit(engine.run, {"images": inputs["images"]}) for _ in range(4)]
        for run in runs:
            assert run.result(TIMEOUT_S)["logits"].shape == (5, 10)
    assert max(np.cumsum(inside)) == 2


@ON_EACH_ENGINE
def test_a_run_that_fails_leaves_the_others_whole(
    classify: Path, inputs: dict[str, np.ndarray], name: EngineName
) -> None:
    """Every other one is no input of the graph; no instance is lost to them."""
    good, wrong = inputs["images"], inputs["images"][:, :16]
    with closing(open_instances(name, classify, 2)) as engine, ThreadPoolExecutor(4) as callers:
        expected = engine.run({"images": good})["logits"]
        runs = [callers.submit(engine.run, {"images": wrong if n % 2 else good}) for n in range(24)]
        for n, run in enumerate(runs):
            if n % 2:
                with pytest.raises(EngineError):
                    run.result(TIMEOUT_S)
            else:
                np.testing.assert_allclose(run.result(TIMEOUT_S)["logits"], expected, atol=1e-4)


def test_what_is_lent_comes_back_and_the_warmest_goes_first() -> None:
    instances = Instances(["first", "second"])
    with instances.lent() as one, instances.lent() as other:
        assert {one, other} == {"first", "second"}
    with instances.lent() as again:
        assert again == one  # the outer one came back last
    started = Event()

    def use() -> str:
        started.set()
        with instances.lent() as item:
            return item

    with ThreadPoolExecutor(1) as callers:
        with instances.lent(), instances.lent() as last:
            third = callers.submit(use)
            assert started.wait(TIMEOUT_S)
            assert not third.done()
        assert third.result(TIMEOUT_S) in (one, last)


@pytest.mark.parametrize(
    ("threads", "expected"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (4, (1, 4)),
        (7, (1, 7)),
        (8, (1, 2, 4, 8)),
        (9, (1, 4, 8, 9)),
        (16, (1, 4, 8, 16)),
    ],
)
def test_numbers_of_instances_worth_timing(threads: int, expected: tuple[int, ...]) -> None:
    for name in ENGINES:
        assert instance_counts(name, "cpu", threads) == expected
    assert instance_counts("onnxruntime", "cuda", threads) == (1, 2)
    assert instance_counts("torch", "cuda", threads) == (1,)


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.machine.num_cores", lambda: 6)
    assert [auto_threads(workers) for workers in (1, 2, 4, 6, 9)] == [6, 3, 1, 1, 1]
    monkeypatch.setattr("engines.machine.num_cores", lambda: 64)
    assert [auto_threads(workers) for workers in (1, 2, 8)] == [64, 32, 8]
    assert [EngineOptions(instances=count).threads_each for count in (1, 4, 16)] == [16, 16, 4]
    assert EngineOptions(threads=32).threads_each == 32


@pytest.mark.skipif(num_gpus() > 0, reason="this machine has a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_silent(classify: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert OnnxRuntimeEngine(classify).info.device == "cpu"
    assert capfd.readouterr() == ("", "")
    for options in (EngineOptions(device="cuda"), EngineOptions(mode="cuda"), EngineOptions(mode="tensorrt")):
        with pytest.raises(EngineUnavailable, match="device cuda: ONNX Runtime cannot use it: "):
            OnnxRuntimeEngine(classify, "fp16", options)


@pytest.mark.skipif(num_gpus() == 0, reason="this machine has no GPU")
def test_on_a_gpu_the_logits_are_those_of_the_cpu(artifact: Path, inputs: dict[str, np.ndarray]) -> None:
    """At every bucket, twice: the first run records a CUDA graph, the second replays it."""
    graph = read_manifest(artifact).graphs[0]
    rows = {"images": inputs["images"]}
    expected = OnnxRuntimeEngine(artifact / graph.file, "fp32", ON_CPU).run(rows)["logits"]
    engine = OnnxRuntimeEngine(
        artifact / graph.file, "fp32", EngineOptions(device="cuda", batch_sizes=(1, 2, 8))
    )
    for size in (1, 2, 5, 5, 2, 1):
        logits = engine.run({"images": rows["images"][:size]})["logits"]
        np.testing.assert_allclose(logits, expected[:size], atol=graph.golden_tolerance)
    engine.close()


def test_fixed_buffers_give_the_same_rows(artifact: Path, inputs: dict[str, np.ndarray]) -> None:
    """What runs on CUDA, on the CPU: padded to a bucket, split where it is larger, and never overwritten."""
    graph = read_manifest(artifact).graph("attribute")
    assert graph is not None
    session = open_session(artifact / graph.file, [(CPU, {})], 1)
    bound = BoundSession(session, "cpu", (1, 2))
    names = [output.name for output in session.get_outputs()]
    for size in (1, 2, 3, 5):
        rows = {name: array[:size] for name, array in inputs.items()}
        first = bound.run(rows)
        bound.run({**rows, "images": 255 - rows["images"]})
        assert list(first) == names
        for name, expected in zip(names, session.run(names, rows), strict=True):
            np.testing.assert_allclose(first[name], expected, atol=1e-4)
    for wrong in (
        {"images": inputs["images"]},
        {**inputs, "gates": inputs["gates"].astype(np.float64)},
        {**inputs, "images": inputs["images"][:, :16]},
    ):
        with pytest.raises(EngineError, match="ONNX Runtime: "):
            bound.run(wrong)
    bound.close()


def test_errors_are_ours(classify: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=r"cannot open no\.onnx"):
        OnnxRuntimeEngine(tmp_path / "no.onnx", "fp32", ON_CPU)
    engine = OnnxRuntimeEngine(classify, "fp32", ON_CPU)
    with pytest.raises(EngineError, match="ONNX Runtime: "):
        engine.run({"images": np.zeros((1, 32, 32, 3), np.float32)})
    with pytest.raises(EngineError, match="no mode 'cuda' on device cpu"):
        OnnxRuntimeEngine(classify, "fp32", EngineOptions(device="cpu", mode="cuda"))


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("int8", EngineOptions(device="cuda"), "int8: .* use int8-trt with TensorRT, or fp16"),
        ("int8", EngineOptions(mode="cuda"), "use int8-trt"),
        ("int8", EngineOptions(mode="tensorrt"), "symmetric"),
        ("int8-trt", EngineOptions(mode="cuda"), "use TensorRT, or fp16"),
        ("int8-trt", ON_CPU, "use int8 on the CPU"),
        ("fp32", EngineOptions(mode="tensorrt"), "TF32; use the mode cuda, or fp16"),
        ("bf16", ON_CPU, "lacks bfloat16 kernels"),
        ("bf16", EngineOptions(device="cuda"), "lacks bfloat16 kernels"),
    ],
)
def test_what_has_no_kernels_is_refused_with_what_to_use(
    classify: Path, precision: Precision, options: EngineOptions, message: str
) -> None:
    with pytest.raises(EngineUnavailable, match=message):
        OnnxRuntimeEngine(classify, precision, options)


def test_int8_left_to_us_runs_on_the_cpu(classify: Path) -> None:
    assert OnnxRuntimeEngine(classify, "int8").info.device == "cpu"


def test_modes_worth_trying() -> None:
    options = EngineOptions(device="cpu", threads=2, batch_sizes=(1, 8))
    assert modes("onnxruntime", "fp32", options) == modes("onnxruntime", "int8", options) == ("cpu",)
    assert modes("onnxruntime", "fp16", options) == modes("onnxruntime", "int8-trt", options) == ()
    assert modes("torch", "fp32", options) == ("eager",)
    assert modes("torch", "int8", options) == ()
    if not num_gpus():
        on_gpu = EngineOptions(device="cuda")
        assert modes("onnxruntime", "fp16", on_gpu) == modes("torch", "fp16", on_gpu) == ()
    else:
        assert modes("torch", "fp16", EngineOptions(device="cuda")) == ("eager", "compile")
        assert "tensorrt" not in modes("onnxruntime", "fp32", EngineOptions(device="cuda"))


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_an_engine_that_is_not_installed_says_how_to(
    classify: Path, monkeypatch: pytest.MonkeyPatch, name: EngineName
) -> None:
    row = ENGINES[name]
    monkeypatch.setitem(sys.modules, row.module, None)
    with pytest.raises(EngineUnavailable, match=rf"engine {name} is installed, but does not start: "):
        open_engine(name, classify, "fp32")
    monkeypatch.setitem(ENGINES, name, replace(row, distributions=("no-such-distribution",)))
    with pytest.raises(EngineUnavailable, match=rf"not installed: in .* pip install -e '\.\[{name}\]'"):
        open_engine(name, classify, "fp32")


def test_an_engine_whose_import_fails_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever it raises: a library that is missing, a driver that does not start."""
    (tmp_path / "broken_engine.py").write_text("raise RuntimeError('libtbb.so is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(ENGINES, "openvino", replace(ENGINES["openvino"], module="broken_engine"))
    with pytest.raises(EngineUnavailable, match=r"does not start: libtbb\.so is missing"):
        modes("openvino", "fp32", ON_CPU)


def test_engines_are_imported_only_when_asked_for() -> None:
    code = (
        "import sys, service.http.app; from engines.engine import EngineOptions;"
        "from engines.registry import modes;"
        "modes('torch', 'fp32', EngineOptions('cpu'));"
        "print(sorted({'onnxruntime', 'openvino', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_cuda_options() -> None:
    assert cuda_options("fp32", record=True) == {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "1",
    }
    half = cuda_options("fp16", record=False)
    assert (half["prefer_nhwc"], half["enable_cuda_graph"]) == ("1", "0")


SHAPES = {"images": (224, 224, 3), "gates": (16,)}


def test_tensorrt_options(classify: Path, tmp_path: Path) -> None:
    options = EngineOptions(batch_sizes=(1, 2, 4, 8), cache=tmp_path / "cache")
    told = tensorrt.provider_options(classify, "int8-trt", SHAPES, options, record=True)
    assert told["trt_profile_min_shapes"] == "images:1x224x224x3,gates:1x16"
    assert told["trt_profile_opt_shapes"] == told["trt_profile_max_shapes"] == "images:8x224x224x3,gates:8x16"
    assert (told["trt_fp16_enable"], told["trt_int8_enable"], told["trt_cuda_graph_enable"]) == (
        "1",
        "1",
        "1",
    )
    assert Path(told["trt_engine_cache_path"]).is_dir()
    assert Path(told["trt_engine_cache_path"]).parent == Path(told["trt_timing_cache_path"])
    assert all(isinstance(value, str) for value in told.values())
    fp32 = tensorrt.provider_options(classify, "fp32", SHAPES, EngineOptions(), record=False)
    assert (fp32["trt_fp16_enable"], fp32["trt_int8_enable"]) == ("0", "0")
    assert "trt_engine_cache_path" not in fp32


def test_a_plan_is_for_one_graph_precision_and_batch_range(
    artifact: Path, classify: Path, tmp_path: Path
) -> None:
    introspect = read_manifest(artifact).graph("introspect")
    assert introspect is not None
    cases: list[tuple[Path, Precision, tuple[int, ...]]] = [
        (classify, "fp16", (1, 8)),
        (classify, "fp16", (1, 16)),
        (classify, "fp32", (1, 8)),
        (artifact / introspect.file, "fp16", (1, 8)),
    ]
    places = [
        tensorrt.provider_options(
            graph, precision, SHAPES, EngineOptions(batch_sizes=sizes, cache=tmp_path), record=True
        )
        for graph, precision, sizes in cases
    ]
    assert len({told["trt_engine_cache_path"] for told in places}) == len(cases)
    assert len({told["trt_timing_cache_path"] for told in places}) == 1


def test_the_machine_is_described() -> None:
    assert cpu_name()
    assert num_cores() >= 1
    if sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        assert ("avx2" in cpu_features()) == (" avx2 " in flags)
    if not num_gpus():
        assert not pin_memory(np.zeros(8, np.uint8))
