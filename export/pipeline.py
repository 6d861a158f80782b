"""A checkpoint becomes an artifact: the steps in order.

The artifact appears whole or not at all: it is made in a folder beside its place and moved there
when every gate has passed.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from PIL import Image

from export.graph import OPSET, export_graph
from export.verify import (
    GOLDEN_TOLERANCE,
    Reference,
    check_parity,
    measure_accuracy,
    reference,
    synthetic_images,
)
from models.checkpoint import CheckpointMetadata
from models.manifest import (
    MANIFEST_FILE,
    Graph,
    GraphKind,
    Manifest,
    Provenance,
    PublishedAccuracy,
    Tensor,
    read_manifest,
    sha256_of,
)
from models.resnet import ResNet, describe_blocks

GRAPHS: tuple[GraphKind, ...] = ("classify", "introspect")
GOLDEN_IMAGE = "golden.png"
NUM_PARITY_IMAGES = 24


class ExportError(Exception):
    """The artifact cannot be written where it was asked for; the message says why."""


@dataclass(frozen=True)
class ValidationImages:
    """Preprocessed as served: uint8 [num_images, crop, crop, 3]; labels int64 [num_images]."""

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


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
    validation: ValidationImages | None = None,
) -> Manifest:
    """Fuse, export, verify, measure, describe; returns the manifest of the artifact at `out`.

    Args:
        model: in evaluation mode; left as it is.
        source: where the weights came from, for people; weights_sha256: of that file.
        weights, licence, published_accuracy, options: of weights that were pulled; see `Provenance`.
        validation: measure every graph's accuracy on these.

    Raises:
        GateError: a graph differs from the model; nothing is left behind.
        ExportError: `out` exists and is not an artifact.
    """
    out = out.resolve()
    _check_replaceable(out)
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
            recipe=metadata.recipe,
            dataset=metadata.dataset,
            commit=metadata.commit,
            seed=metadata.seed,
            checkpoint_accuracy=metadata.accuracy,
        )
        manifest = _make(model, metadata, name, work, provenance, validation)
        manifest.write(work)
        if out.exists():
            out.rename(Path(folder) / "replaced")
        work.rename(out)
    return manifest


def _check_replaceable(out: Path) -> None:
    """What would be lost must be an artifact and nothing else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out} is a file: choose a folder")
    kept = {MANIFEST_FILE}
    if (out / MANIFEST_FILE).is_file():
        old = read_manifest(out, verify=False)
        kept |= {old.golden_image, *(graph.file for graph in old.graphs)}
    if others := sorted(path.name for path in out.iterdir() if path.name not in kept):
        raise ExportError(
            f"{out} holds {', '.join(others[:3])}, which is no part of an artifact: choose another folder"
        )


def _make(
    model: ResNet,
    metadata: CheckpointMetadata,
    name: str,
    work: Path,
    provenance: Provenance,
    validation: ValidationImages | None,
) -> Manifest:
    preprocessing = metadata.preprocessing
    exact = copy.deepcopy(model).double()
    golden = synthetic_images(1, preprocessing.crop, seed=1)
    Image.fromarray(golden[0]).save(work / GOLDEN_IMAGE, optimize=True)
    expected = reference(
        exact, preprocessing, synthetic_images(NUM_PARITY_IMAGES, preprocessing.crop, seed=0)
    )
    expected_golden = reference(exact, preprocessing, golden)
    graphs = tuple(
        _make_graph(kind, model, exact, metadata, work, expected, expected_golden, validation)
        for kind in GRAPHS
    )
    return Manifest(
        name=name,
        version=hashlib.sha256("".join(graph.sha256 for graph in graphs).encode()).hexdigest()[:12],
        architecture=model.spec.name,
        variant=model.variant,
        num_classes=model.spec.num_classes,
        labels=metadata.labels,
        preprocessing=preprocessing,
        provenance=provenance,
        blocks=describe_blocks(model, preprocessing.crop),
        graphs=graphs,
        golden_image=GOLDEN_IMAGE,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _make_graph(
    kind: GraphKind,
    model: ResNet,
    exact: ResNet,
    metadata: CheckpointMetadata,
    work: Path,
    expected: Reference,
    golden: Reference,
    validation: ValidationImages | None,
) -> Graph:
    path = work / f"{kind}.fp32.onnx"
    proto = export_graph(kind, model, metadata.preprocessing, path)
    parity = check_parity(kind, path, exact, metadata.preprocessing, expected)
    accuracy = None
    if validation is not None:
        accuracy = measure_accuracy(kind, path, validation.images, validation.labels, validation.name)
    return Graph(
        kind=kind,
        precision="fp32",
        file=path.name,
        sha256=sha256_of(path),
        num_bytes=path.stat().st_size,
        opset=OPSET,
        inputs=tuple(_describe(info) for info in proto.graph.input),
        outputs=tuple(_describe(info) for info in proto.graph.output),
        engines=("onnxruntime",),
        parity=parity,
        golden_logits=tuple(float(np.float32(value)) for value in golden.logits_NK[0]),
        golden_tolerance=GOLDEN_TOLERANCE * max(1.0, golden.logit_range),
        accuracy=accuracy,
    )


def _describe(info: onnx.ValueInfoProto) -> Tensor:
    kind = info.type.tensor_type
    return Tensor(
        name=info.name,
        dtype=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        shape=tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
    )
