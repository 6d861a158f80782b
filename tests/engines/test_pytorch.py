"""The torch engine gives what ONNX Runtime gives, of the same file, for every operator that export writes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from artifact.manifest import GraphKind, Precision, Preprocessing, read_manifest
from engines.engine import EngineError, EngineOptions, EngineUnavailable
from engines.onnxruntime import OnnxRuntimeEngine
from engines.pytorch.engine import TorchEngine
from engines.registry import open_engine
from export.graph import cut_introspect, export_graph
from models.resnet import build
from tests.conftest import ROOT
from tests.support.networks import liven

SIDE = 32
PREPROCESSING = Preprocessing(resize=SIDE, crop=SIDE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CPU = EngineOptions(device="cpu", threads=1)
# Between them they have every operator that an export of the zoo has.
ROWS: dict[str, dict[str, object]] = {
    "resnet20": dict(depths=(1, 1)),  # option A: slices and pads
    "seresnext50_32x4d": dict(
        depths=(1, 1), width=16, stem="deep", shortcut="pooled-projection", num_classes=10
    ),
    "densenet_bc100_k12": dict(depths=(1, 1)),
    "plain18": dict(depths=(1,), width=8, num_classes=10),
    "highway20": dict(depths=(1,)),
}
# Of the largest logit, scalar or map value; a bf16 number has 8 digits of precision, an fp16 one 11.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 4e-3}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """exported(row, kind, precision) -> the ONNX file, made once."""
    folder = tmp_path_factory.mktemp("graphs")

    def export(row: str, kind: GraphKind = "introspect", precision: Precision = "fp32") -> Path:
        path = folder / f"{row}.{kind}.{precision}.onnx"
        if path.exists():
            return path
        if kind == "introspect":
            cut_introspect(onnx.load(export(row, "attribute", precision)), path)
        else:
            model = liven(build(row, **ROWS[row]))  # type: ignore[arg-type]
            export_graph(kind, model, PREPROCESSING, path, precision)
        return path

    return export


def inputs_for(path: Path, num_images: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    random = np.random.default_rng(seed)
    found: dict[str, NDArray[np.generic]] = {}
    for value in onnx.load(path).graph.input:
        shape = (num_images, *(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]))
        if value.name == "images":
            found["images"] = random.integers(0, 256, shape, np.uint8)
        elif value.name == "target":
            found["target"] = random.integers(-1, 4, shape)
        else:
            found[value.name] = random.random(shape, np.float32)
    return found


def assert_same(
    ours: dict[str, NDArray[np.generic]], theirs: dict[str, NDArray[np.generic]], tolerance: float
) -> None:
    """`tolerance` is of the largest value of each output."""
    assert list(ours) == list(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == np.float32
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("kind", ["introspect", "attribute"])
@pytest.mark.parametrize("row", ROWS)
def test_parity_with_onnx_runtime(row: str, kind: GraphKind, exported: Export) -> None:
    path = exported(row, kind)
    engine, reference = TorchEngine(path, "fp32", CPU), OnnxRuntimeEngine(path, "fp32", CPU)
    for num_images in (1, 3, 7):
        inputs = inputs_for(path, num_images)
        assert_same(engine.run(inputs), reference.run(inputs), TOLERANCES["fp32"])


def test_parity_of_the_embedded_model(embedded: Path) -> None:
    graph = read_manifest(embedded, verify=False).graph("classify", "fp32")
    assert graph is not None
    path = embedded / graph.file
    inputs = inputs_for(path, 3)
    logits = open_engine("torch", path, "fp32", CPU).run(inputs)["logits"]
    expected = OnnxRuntimeEngine(path, "fp32", CPU).run(inputs)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_bf16_is_near_fp32(exported: Export) -> None:
    engine = TorchEngine(exported("resnet20", "introspect", "bf16"), "bf16", CPU)
    reference = OnnxRuntimeEngine(exported("resnet20"), "fp32", CPU)
    for num_images in (1, 3):
        inputs = inputs_for(exported("resnet20"), num_images)
        assert_same(engine.run(inputs), reference.run(inputs), TOLERANCES["bf16"])


def test_parity_of_fp16(exported: Export) -> None:
    path = exported("resnet20", "classify", "fp16")
    engine, reference = TorchEngine(path, "fp16", CPU), OnnxRuntimeEngine(path, "fp16", CPU)
    for num_images in (1, 3):
        inputs = inputs_for(path, num_images)
        assert_same(engine.run(inputs), reference.run(inputs), TOLERANCES["fp16"])


def made(tmp_path: Path, body: str) -> Path:
    """A graph from ONNX's own text form: uint8 images [N, 4, 4, 3] to float logits [N, 4, 4, 3]."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 20]> '
        f"made (uint8[N, 4, 4, 3] images) => (float[N, 4, 4, 3] logits) {{ {body} }}"
    )
    onnx.save(model, tmp_path / "made.onnx")
    return tmp_path / "made.onnx"


def test_errors_are_ours(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"this is no graph")
    with pytest.raises(EngineError, match=r"torch cannot open no\.onnx"):
        TorchEngine(tmp_path / "no.onnx", "fp32", CPU)
    path = made(tmp_path, "x = Cast <to = 1> (images) logits = Hardmax (x)")
    with pytest.raises(EngineError, match=r"made\.onnx has the operator Hardmax, which is not in our table"):
        TorchEngine(path, "fp32", CPU)
    path = made(tmp_path, "x = Cast <to = 1> (images) logits = Concat <axis = 1, far = 2> (x)")
    with pytest.raises(EngineError, match=r"uses Concat in an unsupported way: .*far"):
        TorchEngine(path, "fp32", CPU)


def test_what_is_no_input_is_refused(tmp_path: Path) -> None:
    engine = TorchEngine(made(tmp_path, "x = Cast <to = 1> (images) logits = Relu (x)"), "fp32", CPU)
    images = np.full((2, 4, 4, 3), 7, np.uint8)
    for wrong in (
        {},
        {"images": images, "more": images},
        {"images": images.astype(np.float32)},
        {"images": images[:, :1]},
    ):
        with pytest.raises(EngineError, match="torch: "):
            engine.run(wrong)
    images.flags.writeable = False
    assert (engine.run({"images": images[::-1]})["logits"] == 7).all()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"images": images})


def test_what_cannot_be_had_says_why(tmp_path: Path) -> None:
    path = made(tmp_path, "x = Cast <to = 1> (images) logits = Relu (x)")
    for precision in ("int8", "int8-trt"):
        with pytest.raises(EngineUnavailable, match=f"{precision}: torch runs fp32, bf16 and fp16"):
            TorchEngine(path, precision, CPU)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="torch has no mode 'fast'"):
        TorchEngine(path, "fp32", EngineOptions("cpu", "fast"))
    if not torch.cuda.is_available():
        with pytest.raises(EngineUnavailable, match="device cuda: "):
            TorchEngine(path, "fp32", EngineOptions("cuda"))


def test_info_and_threads(tmp_path: Path) -> None:
    path = made(tmp_path, "x = Cast <to = 1> (images) logits = Relu (x)")
    before = torch.get_num_threads()
    engine = TorchEngine(path, "fp32", EngineOptions("cpu", threads=2, instances=2))
    assert (engine.info.name, engine.info.device, engine.info.threads) == ("torch", "cpu", 2)
    assert (engine.info.version, engine.info.mode) == (torch.__version__, "eager")
    engine.run({"images": np.zeros((1, 4, 4, 3), np.uint8)})
    assert torch.get_num_threads() == before  # of the caller
    assert engine.info.instances == 2
    if not torch.cuda.is_available():
        assert TorchEngine(path).info.device == "cpu"


COMPILE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from engines.engine import EngineOptions, EngineUnavailable
from engines.pytorch.engine import TorchEngine
graph, cache = Path(sys.argv[1]), Path(sys.argv[2])
try:
    engine = TorchEngine(graph, "fp32", EngineOptions("cpu", "compile", 2, (2,), cache, instances=2))
except EngineUnavailable as error:
    sys.exit(str(error))
assert engine.info.mode == "compile"
batches = [np.random.default_rng(n).integers(0, 256, (1 + n % 3, 4, 4, 3), np.uint8) for n in range(12)]
with ThreadPoolExecutor(4) as callers:
    answers = callers.map(engine.run, [{"images": images} for images in batches])
for images, outputs in zip(batches, answers, strict=True):
    np.testing.assert_array_equal(outputs["logits"], images.astype(np.float32) * 2)
"""


def compile_in_a_process(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One of its own: torch.compile starts processes, and stays as it found its compiler and its cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    path = made(tmp_path, "x = Cast <to = 1> (images) y = Relu (x) logits = Add (y, x)")
    return subprocess.run(
        [sys.executable, "-c", COMPILE, str(path), str(tmp_path / "cache")],
        cwd=ROOT,
        env={**kept, "TORCHINDUCTOR_COMPILE_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_compiles_each_batch_size(tmp_path: Path) -> None:
    done = compile_in_a_process(tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache" / "torch").rglob("*.so"))  # kept where it was asked for


def test_without_a_compiler_compile_says_so(tmp_path: Path) -> None:
    done = compile_in_a_process(tmp_path, CXX="no-such-compiler")
    assert done.returncode == 1
    assert "torch cannot compile made.onnx here, use mode eager: " in done.stderr
    assert "Traceback" not in done.stderr


@needs_gpu
@pytest.mark.parametrize("mode", ["eager", "compile"])
@pytest.mark.parametrize("precision", TOLERANCES)
def test_on_a_gpu_as_on_the_cpu(precision: Precision, mode: str, exported: Export) -> None:
    path = exported("resnet20", "introspect", precision)
    reference = OnnxRuntimeEngine(exported("resnet20"), "fp32", CPU)
    engine = TorchEngine(path, precision, EngineOptions("cuda", mode, batch_sizes=(1, 4)))
    assert (engine.info.device, engine.info.threads, engine.info.mode) == ("cuda", 0, mode)
    kept = []
    for seed, num_images in enumerate((1, 4, 3, 6, 1, 4)):  # recorded and not, and again
        inputs = inputs_for(path, num_images, seed)
        outputs, expected = engine.run(inputs), reference.run(inputs)
        assert_same(outputs, expected, TOLERANCES[precision])
        kept.append((outputs, expected))
    for outputs, expected in kept:  # no later run changed them
        assert_same(outputs, expected, TOLERANCES[precision])


@needs_gpu
def test_a_gpu_runs_one_batch_at_a_time(tmp_path: Path) -> None:
    path = made(tmp_path, "x = Cast <to = 1> (images) logits = Relu (x)")
    with pytest.raises(EngineUnavailable, match="one batch at a time; use --instances 1"):
        TorchEngine(path, "fp32", EngineOptions("cuda", instances=2))


@needs_gpu
def test_close_gives_the_memory_of_a_gpu_back(exported: Export) -> None:
    path = exported("resnet20")
    TorchEngine(path, "fp32", EngineOptions("cuda")).close()  # what libraries take for good
    before = torch.cuda.memory_allocated()
    engine = TorchEngine(path, "fp32", EngineOptions("cuda", batch_sizes=(1, 8)))
    assert torch.cuda.memory_allocated() > before
    engine.close()
    assert torch.cuda.memory_allocated() == before


FAULT = """
import sys
from pathlib import Path
import numpy as np, torch
from engines.engine import EngineError, EngineOptions
from engines.pytorch.engine import TorchEngine
engine = TorchEngine(Path(sys.argv[1]), "fp32", EngineOptions("cuda", batch_sizes=(1,)))
torch._assert_async(torch.zeros(1, device="cuda"))
for size in (1, 2, 1):
    try:
        engine.run({"images": np.zeros((size, 4, 4, 3), np.uint8)})
    except EngineError:
        print("EngineError")
"""


@needs_gpu
def test_after_a_fault_on_a_gpu_every_run_fails(tmp_path: Path) -> None:
    path = made(tmp_path, "x = Cast <to = 1> (images) logits = Relu (x)")
    command = [sys.executable, "-c", FAULT, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["EngineError"] * 3, done.stderr
