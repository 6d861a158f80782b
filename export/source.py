"""A request for an artifact: the source of the weights, recognised by its content, and the options.

Four kinds of sources: a checkpoint of `residuum train`, a file of weights that others trained, the name of
published weights, and random weights for a row of the zoo.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from artifact.errors import ResiduumError
from artifact.manifest import Preprocessing, sha256_of
from export.images import name_of
from export.options import MAX_PIXELS, changed_preprocessing, check_fields
from export.precisions import MeasureReference, PrecisionRequest, TimeGraphs
from models.checkpoint import is_checkpoint
from models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from models.pretrained import Pretrained
from models.zoo import architecture

SourceKind = Literal["checkpoint", "weights", "published", "random"]
# Names with these endings are files, whether or not they exist. The content tells what is in a file.
WEIGHT_SUFFIXES = {".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar"}
# Why a source refuses options that are for files of weights.
KNOWN = {
    "checkpoint": "a checkpoint says itself what it holds",
    "random": "random weights take what is usual for their architecture",
}


class SourceError(ResiduumError):
    """The request cannot be fulfilled; the message says why."""


@dataclass(frozen=True)
class Training:
    """Training before the export.

    Attributes:
        prune: fraction of the hidden channels to drop, followed by `prune_epochs` of fine-tuning; 0: none.
        qat_epochs: epochs of fine-tuning under int8's rounding; 0: none.
    """

    prune: float = 0.0
    prune_epochs: int = 1
    qat_epochs: int = 0


@dataclass(frozen=True)
class Request:
    """A source of weights, and the options of its export.

    Attributes:
        weights: the path of a file, a name that `models.pretrained.resolve` takes, or a row of the zoo.
        artifacts: the directory for artifacts without `out`.
        out: the artifact's directory; None: `artifacts` / the name.
        name: of the model; None: the name of `out`, or else the architecture's or the file's.
        seed: of random weights; None: the weights are not random.
        architecture, changes, labels: for files of weights only: a row of the zoo, changes to its fields, and
            a file with the names of the classes.
        preprocessing: changes to `Preprocessing`; for published weights and files of weights.
        scaled_decoding: see `Preprocessing`; of any source.
        precisions: the precisions beside fp32, and their images.
        training: what is trained before the export.
        time_graphs, measure_reference: see `export.precisions.ExportPlan`.
        force: replace an artifact that exists already, also one of another model.
    """

    weights: str
    artifacts: Path
    out: Path | None = None
    name: str | None = None
    seed: int | None = None
    architecture: str | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    labels: Path | None = None
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    scaled_decoding: bool = False
    precisions: PrecisionRequest = field(default_factory=PrecisionRequest)
    training: Training = field(default_factory=Training)
    time_graphs: TimeGraphs | None = None
    measure_reference: MeasureReference | None = None
    force: bool = False


def is_file(weights: str) -> bool:
    """Return whether `weights` is a path and not a name."""
    path = Path(weights).expanduser()
    return path.suffix in WEIGHT_SUFFIXES or weights.startswith((".", "/", "~")) or path.is_file()


def kind_of(request: Request) -> SourceKind:
    """Return the kind of the source; a file's content tells whether it is a checkpoint.

    Raises:
        SourceError: there is no such file.
    """
    if request.seed is not None:
        return "random"
    if not is_file(request.weights):
        return "published"
    path = Path(request.weights).expanduser()
    if path.is_dir():
        raise SourceError(f"{path} is a folder: expected a file of weights")
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    return "checkpoint" if is_checkpoint(path) else "weights"


def check_options(request: Request, kind: SourceKind, row: Pretrained | None) -> None:
    """Raise SourceError or OptionError for an option that the source cannot have."""
    of_files = {"--architecture": request.architecture, "--set": request.changes, "--labels": request.labels}
    given = [flag for flag, value in of_files.items() if value]
    if kind != "weights" and given:
        known = f"what {row.key} is, is known" if row else KNOWN[kind]
        raise SourceError(f"{given[0]} is for files of other people's weights: {known}")
    if kind in KNOWN and request.preprocessing:
        raise SourceError(
            f"--{next(iter(request.preprocessing))} is for other people's weights: {KNOWN[kind]}"
        )
    check_fields(request.changes)
    # If the preprocessing is not known yet, check against one into which every crop fits.
    known_preprocessing = row.preprocessing if row else None
    changed_preprocessing(
        known_preprocessing or Preprocessing(resize=MAX_PIXELS, crop=1, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        request.preprocessing,
    )
    training = request.training
    if training.prune and request.precisions.data is None:
        raise SourceError("--prune fine-tunes and is measured on --data: give it")
    if training.qat_epochs and "int8" not in request.precisions.names:
        raise SourceError("--qat-epochs fine-tunes weights for --precision int8: ask for that too")


def options_of(request: Request) -> dict[str, object]:
    """Return the options that are not defaults, as JSON holds them; equal for equal artifacts."""
    training = request.training
    options: dict[str, object] = {
        "preprocessing": dict(request.preprocessing),
        "scaled_decoding": request.scaled_decoding,
        "architecture": request.architecture and architecture(request.architecture).name,
        "changes": dict(request.changes),
        "labels_sha256": request.labels and _sha256_of_labels(request.labels),
        **_precision_options(request.precisions),
        "prune": training.prune,
        "prune_epochs": training.prune and training.prune_epochs,
        "qat_epochs": training.qat_epochs,
    }
    given = {name: value for name, value in options.items() if value}
    return dict(json.loads(json.dumps(given)))


def _precision_options(asked: PrecisionRequest) -> dict[str, object]:
    """Name data sets without their location: paths of a machine do not belong into an artifact."""
    options: dict[str, object] = {"precisions": sorted({*asked.names} - {"fp32"})}
    if asked.calibration:
        options |= {"calibration": name_of(asked.calibration), "num_calibration": asked.num_calibration}
        options["keep_layers"] = asked.keep_layers
    if asked.data:
        options["data"] = name_of(asked.data)
    return options


def _sha256_of_labels(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise SourceError(f"--labels {path}: {error.strerror}") from error


def directory_of(request: Request, kind: SourceKind, row: Pretrained | None) -> Path:
    """Return the artifact's directory: `out`, or one below `artifacts` that has the model's name.

    Raises:
        SourceError: the name cannot be a directory's.
    """
    if request.out:
        return request.out
    path = Path(request.weights).expanduser()
    usual = {
        "published": row.architecture if row else "",
        "weights": path.name.split(".")[0],
        "checkpoint": path.resolve().parent.name,
        "random": architecture(request.weights).name if kind == "random" else "",
    }[kind]
    name = request.name or usual
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise SourceError(
            f"{name!r} cannot be a model's name: letters, digits, '_', '-' and '.'; give --name"
        )
    return request.artifacts / name
