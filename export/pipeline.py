"""A checkpoint becomes an artifact: the steps in order.

The artifact appears whole or not at all: it is made in a folder beside its place and moved there
when every gate has passed.
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
    Provenance,
    PublishedAccuracy,
    Quantization,
    Tensor,
    read_manifest,
    sha256_of,
)
from artifact.store import is_artifact
from export.accuracy import check_accuracy, check_agreement, score
from export.emulate import run_as_written
from export.graph import cut_introspect, export_graph
from export.images import ValidationImages
from export.precisions import KINDS, Precisions, TimeGraphs
from export.quantize import Int8, quantize, sensitivities
from export.report import CHART, TABLE, write_report
from export.verify import check_parity, golden, reference, synthetic_images
from models.checkpoint import CheckpointMetadata
from models.resnet import ResNet, describe_blocks

logger = logging.getLogger("residuum")

GOLDEN_IMAGE = "golden.png"
NUM_PARITY_IMAGES = 24
NUM_SCAN_IMAGES = 64  # on which the sensitive layers are found


class ExportError(ResiduumError):
    """The artifact cannot be written where, or as, it was asked for; the message says why."""


def export_artifact(
    model: ResNet,
    metadata: CheckpointMetadata,
    name: str,
    out: Path,
    *,
    source: str,
    weights_sha256: str,
    weights: str | None = None,
    licence: str | None = None,
    published_accuracy: PublishedAccuracy | None = None,
    options: dict[str, object] | None = None,
    pruned: float | None = None,
    validation: ValidationImages | None = None,
    precisions: Precisions | None = None,
) -> Manifest:
    """Fuse, export, quantize, verify, measure, describe; returns the manifest of the artifact at `out`.

    Args:
        model: in evaluation mode; left as it is.
        source: where the weights came from, for people; weights_sha256: of that file.
        weights, licence, published_accuracy, options, pruned: see `Provenance`.
        validation: measure every graph's accuracy on these.
        precisions: what is made beside fp32.

    Raises:
        GateError: a graph differs from the model or loses accuracy; nothing is left behind.
        QuantizeError: it cannot be quantized.
        ExportError: `out` exists and is not an artifact.
    """
    out = out.resolve()
    check_replaceable(out)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every operator of torchvision
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        work = Path(folder) / "artifact"
        work.mkdir()
        provenance = Provenance(
            source=source,
            weights_sha256=weights_sha256,
            num_parameters=sum(p.numel() for p in model.parameters()),
            weights=weights,
            licence=licence,
            published_accuracy=published_accuracy,
            options=options,
            pruned=pruned,
            recipe=metadata.recipe,
            dataset=metadata.dataset,
            commit=metadata.commit,
            seed=metadata.seed,
            checkpoint_accuracy=metadata.accuracy,
        )
        precisions = precisions or Precisions()
        making = _Making(model, metadata, work, precisions, validation)
        manifest = _describe(making, name, provenance)
        if validation and precisions.measure_reference:
            reference = precisions.measure_reference(work, manifest, validation.images, validation.name)
            manifest = manifest.model_copy(update={"reference": reference})
        if precisions.time_graphs:
            manifest = _with_report(manifest, precisions.time_graphs, work)
        manifest.write(work)
        if out.exists():
            out.rename(Path(folder) / "replaced")
        work.rename(out)
    return manifest


def _with_report(manifest: Manifest, time_graphs: TimeGraphs, work: Path) -> Manifest:
    """Whatever fails here, the graphs are made and checked: they are not lost for want of a chart."""
    try:
        return write_report(manifest, time_graphs(work, manifest), work)
    except Exception as error:
        logger.warning("No report on %s: %s: %s", manifest.name, type(error).__name__, error)
        for name in (TABLE, CHART):
            (work / name).unlink(missing_ok=True)
        return manifest


def check_replaceable(out: Path) -> None:
    """Raises ExportError: what would be lost is not an artifact and nothing else."""
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


def _describe(making: _Making, name: str, provenance: Provenance) -> Manifest:
    model, metadata = making.model, making.metadata
    graphs = making.graphs()
    return Manifest(
        name=name,
        version=hashlib.sha256("".join(graph.sha256 for graph in graphs).encode()).hexdigest()[:12],
        architecture=model.spec.name,
        variant=model.variant,
        num_classes=model.spec.num_classes,
        labels=metadata.labels,
        preprocessing=metadata.preprocessing,
        provenance=provenance,
        blocks=describe_blocks(model, metadata.preprocessing.crop),
        graphs=graphs,
        golden_image=GOLDEN_IMAGE,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class _Making:
    """The graphs of one artifact, made and checked one after another; the fp32 ones first."""

    def __init__(
        self,
        model: ResNet,
        metadata: CheckpointMetadata,
        work: Path,
        precisions: Precisions,
        validation: ValidationImages | None,
    ) -> None:
        self.model, self.metadata, self.work = model, metadata, work
        self.precisions, self.validation = precisions, validation
        preprocessing = metadata.preprocessing
        golden_image = synthetic_images(1, preprocessing.crop, seed=1)
        Image.fromarray(golden_image[0]).save(work / GOLDEN_IMAGE, optimize=True)
        parity_images = synthetic_images(NUM_PARITY_IMAGES, preprocessing.crop, seed=0)
        self.exact = copy.deepcopy(model).double()
        self.expected = reference(self.exact, preprocessing, parity_images)
        self.expected_golden = reference(self.exact, preprocessing, golden_image)
        self._fp32_logits: dict[GraphKind, NDArray[np.float32]] = {}

    def graphs(self) -> tuple[Graph, ...]:
        wanted = [(kind, precision) for precision in self.precisions.all for kind in KINDS[precision]]
        return tuple(self._graph(kind, precision) for kind, precision in wanted)

    def _graph(self, kind: GraphKind, precision: Precision) -> Graph:
        path = self._path(kind, precision)
        quantization = None
        if precision == "int8" or precision == "int8-trt":
            quantization = self._quantize(precision, path)
        elif (
            kind == "introspect"
        ):  # a part of attribute, which is written on the way: exporting takes longest
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
        """From the exported graph; from another where int8 has weights of its own, or rests on fp16."""
        calibration = self.precisions.calibration
        assert calibration is not None
        own = self.precisions.quantized_model if precision == "int8" else None
        base: Precision = "fp16" if precision == "int8-trt" else "fp32"
        with tempfile.TemporaryDirectory() as folder:
            source = self._path("classify", base)
            if own or not source.exists():
                source = Path(folder) / source.name
                export_graph("classify", own or self.model, self.metadata.preprocessing, source, base)
            images, kept = calibration.images, []
            if self.precisions.keep_layers:
                errors = sensitivities(source, images[:NUM_SCAN_IMAGES], precision=precision)
                kept = list(errors)[: self.precisions.keep_layers]
            found = quantize(
                source, path, images, precision=precision, dataset=calibration.name, kept_layers=kept
            )
        return found.model_copy(update={"qat_epochs": self.precisions.qat_epochs if own else 0})

    def _accuracy(
        self, kind: GraphKind, precision: Precision, path: Path
    ) -> tuple[Accuracy | None, str | None]:
        """On labelled images if there are any; else only how often it says what fp32 does.

        In half precision `introspect` is the same network as `classify`, and `attribute` always is that of
        `introspect`: parity says what there is to say.
        """
        if kind == "attribute" or (kind == "introspect" and precision != "fp32"):
            return None, None
        images = self.validation or self.precisions.calibration
        if images is None:
            return None, None
        logits = run_as_written(path, precision, images.images)
        fp32 = None if precision == "fp32" else self._fp32_logits[kind]
        if fp32 is None:
            self._fp32_logits[kind] = logits
        verdict, allow_loss = None, self.precisions.allow_loss
        if self.validation is None:
            if fp32 is not None:
                verdict = check_agreement(precision, logits, fp32, allow_loss=allow_loss)
            return None, verdict
        labels = self.validation.labels
        if fp32 is not None:
            verdict = check_accuracy(precision, logits, fp32, labels, allow_loss=allow_loss)
        return score(logits, labels, self.validation.name, fp32), verdict


def _tensor(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    return Tensor(
        name=info.name,
        dtype=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        shape=tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
    )
