"""Export a network as an artifact: the steps in order.

The artifact appears whole or not at all: it is made in a directory beside its place, and moved there when
every gate has passed.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from artifact.errors import ResiduumError
from artifact.manifest import (
    MANIFEST_FILE,
    Accuracy,
    Graph,
    GraphKind,
    Manifest,
    Precision,
    Quantization,
    Tensor,
    read_manifest,
    sha256_of,
)
from artifact.store import is_artifact
from export.accuracy import check_accuracy, check_agreement, score
from export.emulate import run_as_written
from export.graph import cut_introspect, export_graph
from export.network import Network
from export.precisions import KINDS, ExportPlan, TimeGraphs
from export.quantize import Int8, quantize, sensitivities
from export.report import CHART, TABLE, write_report
from export.verify import check_parity, golden, reference, synthetic_images
from models.resnet import describe_blocks

logger = logging.getLogger("residuum")

GOLDEN_IMAGE = "golden.png"
NUM_PARITY_IMAGES = 24
NUM_SCAN_IMAGES = 64  # on which the sensitive layers are found


class ExportError(ResiduumError):
    """The artifact cannot be written where, or as, it was asked for; the message says why."""


def export_artifact(network: Network, name: str, out: Path, plan: ExportPlan | None = None) -> Manifest:
    """Fuse, export, quantize, verify, measure, describe; return the manifest of the artifact at `out`.

    Args:
        network: its model is left as it is.
        name: of the model.
        plan: what to make beside the fp32 graphs, and what to measure; None: nothing.

    Raises:
        GateError: a graph differs from the model or loses accuracy; nothing is left behind.
        QuantizeError: it cannot be quantized.
        ExportError: `out` exists and is not an artifact.
    """
    out, plan = out.resolve(), plan or ExportPlan()
    check_replaceable(out)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every operator of torchvision
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        work = Path(folder) / "artifact"
        work.mkdir()
        manifest = _describe(network, name, _GraphMaker(network, plan, work).graphs())
        validation = plan.validation
        if validation and plan.measure_reference:
            reference = plan.measure_reference(work, manifest, validation.images, validation.name)
            manifest = manifest.model_copy(update={"reference": reference})
        if plan.time_graphs:
            manifest = _with_report(manifest, plan.time_graphs, work)
        manifest.write(work)
        if out.exists():
            out.rename(Path(folder) / "replaced")
        work.rename(out)
    return manifest


def _with_report(manifest: Manifest, time_graphs: TimeGraphs, work: Path) -> Manifest:
    """Add the report; if that fails, warn and go on, because the graphs are made and checked already."""
    try:
        return write_report(manifest, time_graphs(work, manifest), work)
    except Exception as error:
        logger.warning("No report on %s: %s: %s", manifest.name, type(error).__name__, error)
        for name in (TABLE, CHART):
            (work / name).unlink(missing_ok=True)
        return manifest


def check_replaceable(out: Path) -> None:
    """Raise ExportError if the place is taken by anything but an artifact."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file: choose a folder")
    kept = {MANIFEST_FILE}
    if is_artifact(out):
        kept |= set(read_manifest(out, verify=False).files())
    if others := sorted(path.name for path in out.iterdir() if path.name not in kept):
        raise ExportError(
            f"{out} holds {', '.join(others[:3])}, which is no part of an artifact: choose another folder"
        )


def _describe(network: Network, name: str, graphs: tuple[Graph, ...]) -> Manifest:
    model, metadata = network.model, network.metadata
    return Manifest(
        name=name,
        version=hashlib.sha256("".join(graph.sha256 for graph in graphs).encode()).hexdigest()[:12],
        architecture=model.spec.name,
        variant=model.variant,
        num_classes=model.spec.num_classes,
        labels=metadata.labels,
        preprocessing=metadata.preprocessing,
        provenance=network.provenance(),
        blocks=describe_blocks(model, metadata.preprocessing.crop),
        graphs=graphs,
        golden_image=GOLDEN_IMAGE,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _GraphMaker:
    """Makes and checks the graphs of one artifact one after another, the fp32 graphs first."""

    def __init__(self, network: Network, plan: ExportPlan, work: Path) -> None:
        """`work`: the directory for the files."""
        self.model, self.metadata = network.model, network.metadata
        self.plan, self.work = plan, work
        preprocessing = self.metadata.preprocessing
        golden_image = synthetic_images(1, preprocessing.crop, seed=1)
        Image.fromarray(golden_image[0]).save(work / GOLDEN_IMAGE, optimize=True)
        parity_images = synthetic_images(NUM_PARITY_IMAGES, preprocessing.crop, seed=0)
        self.exact = copy.deepcopy(self.model).double()
        self.expected = reference(self.exact, preprocessing, parity_images)
        self.expected_golden = reference(self.exact, preprocessing, golden_image)
        self._fp32_logits: dict[GraphKind, NDArray[np.float32]] = {}

    def graphs(self) -> tuple[Graph, ...]:
        wanted = [(kind, precision) for precision in self.plan.all_precisions for kind in KINDS[precision]]
        return tuple(self._graph(kind, precision) for kind, precision in wanted)

    def _graph(self, kind: GraphKind, precision: Precision) -> Graph:
        path = self._path(kind, precision)
        quantization = None
        if precision == "int8" or precision == "int8-trt":
            quantization = self._quantize(precision, path)
        elif kind == "introspect":
            # `introspect` is a part of `attribute`: one export, which is the slowest step, serves both.
            other = self._path("attribute", precision)
            attribute = export_graph("attribute", self.model, self.metadata.preprocessing, other, precision)
            cut_introspect(attribute, path)
        elif kind == "classify":
            export_graph(kind, self.model, self.metadata.preprocessing, path, precision)
        parity = check_parity(kind, path, self.exact, self.metadata.preprocessing, self.expected, precision)
        golden_logits, golden_tolerance = golden(path, precision, self.expected_golden)
        accuracy, verdict = self._accuracy(kind, precision, path)
        proto = onnx.load(path)
        return Graph(
            kind=kind,
            precision=precision,
            file=path.name,
            sha256=sha256_of(path),
            num_bytes=path.stat().st_size,
            opset=next(opset.version for opset in proto.opset_import if opset.domain in ("", "ai.onnx")),
            inputs=tuple(_tensor(info) for info in proto.graph.input),
            outputs=tuple(_tensor(info) for info in proto.graph.output),
            parity=parity,
            golden_logits=tuple(float(np.float32(value)) for value in golden_logits),
            golden_tolerance=golden_tolerance,
            accuracy=accuracy,
            verdict=verdict,
            quantization=quantization,
        )

    def _path(self, kind: GraphKind, precision: Precision) -> Path:
        return self.work / f"{kind}.{precision}.onnx"

    def _quantize(self, precision: Int8, path: Path) -> Quantization:
        """Quantize the exported graph, or another one if int8 has its own weights or starts from fp16."""
        calibration = self.plan.calibration
        assert calibration is not None
        own = self.plan.quantized_model if precision == "int8" else None
        base: Precision = "fp16" if precision == "int8-trt" else "fp32"
        with tempfile.TemporaryDirectory() as folder:
            source = self._path("classify", base)
            if own or not source.exists():
                source = Path(folder) / source.name
                export_graph("classify", own or self.model, self.metadata.preprocessing, source, base)
            images, kept = calibration.images, []
            if self.plan.keep_layers:
                errors = sensitivities(source, images[:NUM_SCAN_IMAGES], precision=precision)
                kept = list(errors)[: self.plan.keep_layers]
            found = quantize(
                source, path, images, precision=precision, dataset=calibration.name, kept_layers=kept
            )
        return found.model_copy(update={"qat_epochs": self.plan.qat_epochs if own else 0})

    def _accuracy(
        self, kind: GraphKind, precision: Precision, path: Path
    ) -> tuple[Accuracy | None, str | None]:
        """Return the accuracy on labelled images, and the gate's verdict.

        Without labels there is no accuracy, and the verdict is about the agreement with fp32. Parity suffices
        for `attribute`, which is the same network as `introspect`, and for `introspect` in half precision,
        which is the same network as `classify`.
        """
        if kind == "attribute" or (kind == "introspect" and precision != "fp32"):
            return None, None
        images = self.plan.validation or self.plan.calibration
        if images is None:
            return None, None
        logits = run_as_written(path, precision, images.images)
        fp32 = None if precision == "fp32" else self._fp32_logits[kind]
        if fp32 is None:
            self._fp32_logits[kind] = logits
        verdict, allow_loss = None, self.plan.allow_loss
        if self.plan.validation is None:
            if fp32 is not None:
                verdict = check_agreement(precision, logits, fp32, allow_loss=allow_loss)
            return None, verdict
        labels = self.plan.validation.labels
        if fp32 is not None:
            verdict = check_accuracy(precision, logits, fp32, labels, allow_loss=allow_loss)
        return score(logits, labels, self.plan.validation.name, fp32), verdict


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    return Tensor(
        name=info.name,
        dtype=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        shape=tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
    )
