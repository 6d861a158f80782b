"""What is measured, and how answers are checked.

Default artifacts, graphs with float input for comparison, and images with their logits.

Shapes: N batch, K classes, L blocks.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from artifact.manifest import TOP_CLASS, Graph, Manifest, Precision
from artifact.store import EMBEDDED, find_artifact, is_artifact
from engines.engine import Engine, EngineOptions
from engines.golden import golden_row
from engines.machine import cpu_features
from engines.registry import BASELINE, open_engine
from export.download import default_cache
from export.verify import synthetic_images

ROOT = Path(__file__).resolve().parent.parent
FRESH_SEED = 20_260  # differs from the seeds of the export's synthetic images
NUM_CALIBRATION = 32
# Operators with which a graph normalises its input.
NORMALISING = ("Transpose", "Cast", "Sub", "Mul")
NUM_FRESH = 16
BF16_FEATURES = {"amx_bf16", "avx512_bf16", "bf16"}
Inputs = Mapping[str, NDArray[Any]]


def default_artifacts(device: str) -> list[Path]:
    """Return the embedded model, and ResNet-50 at 224 pixels with random weights in fast precisions."""
    precisions: tuple[Precision, ...] = ("bf16", "fp16", "int8-trt")
    if device == "cpu":
        precisions = ("bf16", "int8") if BF16_FEATURES & set(cpu_features()) else ("int8",)
    return [find_artifact(EMBEDDED, Path()), random_artifact("resnet50", precisions)]


def random_artifact(
    name: str, precisions: tuple[Precision, ...], cache: Path | None = None, *, seed: int = 0
) -> Path:
    """Return an artifact of an architecture with random weights, kept in `cache` until its code changes.

    An export of ResNet-50 takes minutes, prints a message on stderr, and needs torch. int8 is calibrated on
    synthetic images.
    """
    directory = (cache or default_cache() / "bench") / f"{name}-random-{_code_hash(name, precisions, seed)}"
    if is_artifact(directory):
        return directory
    print(f"exporting {name} with random weights to {directory} ...", file=sys.stderr, flush=True)
    from export.from_checkpoint import from_random_weights
    from export.images import CalibrationImages
    from export.pipeline import export_artifact
    from export.precisions import ExportPlan

    network = from_random_weights(name, seed)
    images = synthetic_images(NUM_CALIBRATION, network.metadata.preprocessing.crop, FRESH_SEED + 1)
    plan = ExportPlan(precisions, CalibrationImages("made-up images", images), allow_loss=True)
    export_artifact(network, f"{name}-random", directory, plan)
    return directory


def _code_hash(*parts: object) -> str:
    """Return a hash of the arguments, and of the code and packages that make the artifact."""
    digest = hashlib.sha256(repr((parts, onnx.__version__)).encode())
    for path in sorted([*(ROOT / "export").glob("*.py"), *(ROOT / "models").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class FloatInput:
    """A graph cut in two after its input is normalised: the head normalises, the tail is the network.

    The tail takes float32 [N, 3, H, W]. It is written to `path`, so that an engine can open it.
    """

    def __init__(self, graph: Path, path: Path) -> None:
        model = onnx.shape_inference.infer_shapes(onnx.load(graph))
        self.name = _normalised(model)
        extractor = onnx.utils.Extractor(model)
        outputs = [output.name for output in model.graph.output]
        self.path, self._head = path, path.with_suffix(".head.onnx")
        onnx.save(extractor.extract_model(["images"], [self.name]), self._head)
        onnx.save(extractor.extract_model([self.name], outputs), path)

    def normalise(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the input of the tail, computed by the graph's own head."""
        with closing(open_engine(BASELINE, self._head, "fp32", EngineOptions("cpu"))) as head:
            return np.ascontiguousarray(head.run({"images": images})[self.name], np.float32)


def _normalised(model: onnx.ModelProto) -> str:
    """Return the last float32 tensor of the chain of normalising operators that begins at `images`."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    name = found = "images"
    while len(readers[name]) == 1 and readers[name][0].op_type in NORMALISING:
        name = readers[name][0].output[0]
        if types.get(name) == onnx.TensorProto.FLOAT:
            found = name
    assert found != "images", "the graph does not normalise its input"
    return found


class Check:
    """Compares logits with the golden ones, and on other images with those of ONNX Runtime in fp32."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self._golden = golden_row(directory, manifest)["images"][None]
        self._fresh = synthetic_images(NUM_FRESH, manifest.preprocessing.crop, FRESH_SEED)
        graph = manifest.graph("classify", "fp32")
        assert graph is not None, "every artifact has one"
        options = EngineOptions("cpu", batch_sizes=(NUM_FRESH,))
        with closing(open_engine(BASELINE, directory / graph.file, "fp32", options)) as engine:
            self._expected = engine.run({"images": self._fresh})["logits"]

    def __call__(self, engine: Engine, graph: Graph, size: int, cut: FloatInput | None) -> dict[str, Any]:
        """Return how far an engine's logits are off; `right`: whether it passes a server's golden check."""
        golden = self._feed(np.repeat(self._golden, size, 0), graph, cut)
        error = float(np.abs(engine.run(golden)["logits"] - np.asarray(graph.golden_logits)).max())
        logits = np.concatenate(
            [
                engine.run(self._feed(self._fresh[start : start + size], graph, cut))["logits"]
                for start in range(0, NUM_FRESH, size)
            ]
        )
        return {
            "right": error <= graph.golden_tolerance,  # NaN is not right
            "golden_error": error,
            "max_abs_delta_logit": float(np.abs(logits - self._expected).max()),
            "top1_agreement": float((logits.argmax(1) == self._expected.argmax(1)).mean()),
        }

    def inputs(self, graph: Graph, size: int, cut: FloatInput | None) -> Inputs:
        """Return a batch to time: the images, repeated up to its size."""
        return self._feed(np.resize(self._fresh, (size, *self._fresh.shape[1:])), graph, cut)

    def _feed(self, images: NDArray[np.uint8], graph: Graph, cut: FloatInput | None) -> Inputs:
        if cut is not None:
            return {cut.name: cut.normalise(images)}
        gates = np.ones((len(images), len(self._manifest.blocks)), np.float32)
        target = np.full(len(images), TOP_CLASS)
        offered: Inputs = {"images": images, "gates": gates, "target": target}
        return {tensor.name: offered[tensor.name] for tensor in graph.inputs}
