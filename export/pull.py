"""Weights that others trained become an artifact: the steps in order.

Published weights come by name from the table in `models/pretrained.py`, anything else from a file. Settings
come in as plain values; this module reads no environment and prints nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from export.pipeline import export_artifact
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.cifar import CIFAR_CLASSES, CIFAR_MEAN, CIFAR_STD, cifar_labels
from models.download import Download, DownloadError, Progress, download, is_missing
from models.imagenet import NUM_CLASSES, imagenet_labels
from models.manifest import (
    Label,
    Manifest,
    ManifestError,
    Preprocessing,
    PublishedAccuracy,
    read_manifest,
    sha256_of,
)
from models.pretrained import (
    IMAGENET,
    MEAN,
    STD,
    Kind,
    Pretrained,
    PretrainedError,
    read_preprocessing,
    resolve,
)
from models.resnet import ResNet
from models.weights import load_foreign, read_state
from models.zoo import Architecture, architecture

WEIGHT_SUFFIXES = {".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar"}

Say = Callable[[str], None]


class PullError(Exception):
    """What was asked for cannot be made; the message says why."""


@dataclass(frozen=True)
class Access:
    """How to reach the sources: base URLs in the order in which they are tried, and the cache."""

    pytorch_urls: tuple[str, ...]
    hub_urls: tuple[str, ...]
    cache: Path
    timeout_s: float = 30.0
    offline: bool = False
    progress: Progress | None = None

    def urls(self, kind: Kind, path: str) -> tuple[str, ...]:
        bases = self.pytorch_urls if kind == "torchvision" else self.hub_urls
        return tuple(f"{base.rstrip('/')}/{path}" for base in bases)

    def get(self, kind: Kind, path: str, sha256: str | None = None) -> Download:
        return download(
            self.urls(kind, path),
            self.cache,
            sha256=sha256,
            timeout_s=self.timeout_s,
            offline=self.offline,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Request:
    """What to pull, and what to do otherwise than by default.

    Attributes:
        weights: what `models.pretrained.resolve` takes, or the path of a file.
        name: of the artifact; None: the architecture's, or the file's.
        architecture, changes, labels: for files only: a row of the zoo, other values for its fields, and a
            file with the classes' names.
        preprocessing: other values for fields of `Preprocessing`.
        force: make it again even if it is there.
    """

    weights: str
    artifacts: Path
    name: str | None = None
    architecture: str | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    labels: Path | None = None
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    force: bool = False


@dataclass(frozen=True)
class Pulled:
    """The artifact; `made` is false where it was there already."""

    path: Path
    manifest: Manifest
    made: bool


@dataclass(frozen=True)
class Found:
    """A file of weights, and what is known of it beforehand."""

    path: Path
    source: str
    sha256: str
    spec: Architecture | None = None
    num_parameters: int | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[Label, ...] | None = None
    key: str | None = None
    licence: str | None = None
    published: PublishedAccuracy | None = None


def pull(request: Request, access: Access, say: Say = lambda _: None) -> Pulled:
    """Resolve, download, map, verify, fuse, export, describe; `say` hears what was decided on the way.

    Raises:
        PullError, PretrainedError, UnknownArchitecture: what was asked for does not exist or does not fit.
        DownloadError, WeightsError, GateError, ExportError: from the steps that have these names.
    """
    row = None if is_file(request.weights) else resolve(request.weights)
    _check_options(request, row)
    out = request.artifacts / _artifact_name(request, row)
    if not request.force and (there := _already(out, request, row)):
        return Pulled(out, there, made=False)
    found = _fetch(row, access, say) if row else _open(Path(request.weights).expanduser())
    model = _map(found, request)
    metadata = _describe(model, found, request, say)
    manifest = export_artifact(
        model,
        metadata,
        out.name,
        out,
        source=found.source,
        weights_sha256=found.sha256,
        weights=found.key,
        licence=found.licence,
        published_accuracy=found.published,
    )
    return Pulled(out, manifest, made=True)


# --- what was asked for ------------------------------------------------------------------------------


def is_file(weights: str) -> bool:
    """Whether a path was given, and not a name."""
    path = Path(weights).expanduser()
    return path.suffix in WEIGHT_SUFFIXES or weights.startswith((".", "/", "~")) or path.is_file()


def _check_options(request: Request, row: Pretrained | None) -> None:
    given = {"--architecture": request.architecture, "--set": request.changes, "--labels": request.labels}
    if row and (wrong := [flag for flag, value in given.items() if value]):
        raise PullError(f"{wrong[0]} is for files: what {row.key} is, is known")
    if unknown := set(request.changes) - {f.name for f in fields(Architecture)}:
        names = ", ".join(f.name for f in fields(Architecture))
        raise PullError(f"--set {min(unknown)}: no such field; there are: {names}")


def _artifact_name(request: Request, row: Pretrained | None) -> str:
    name = request.name or (row.architecture if row else Path(request.weights).name.split(".")[0])
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise PullError(f"{name!r} cannot be a model's name: letters, digits, '_', '-' and '.'; give --name")
    return name


def _already(out: Path, request: Request, row: Pretrained | None) -> Manifest | None:
    """The sound artifact at `out`, if it was made of these weights and nothing else is asked of it."""
    try:
        manifest = read_manifest(out)
        if (
            row is None
            and sha256_of(Path(request.weights).expanduser()) != manifest.provenance.weights_sha256
        ):
            return None
    except (ManifestError, OSError):
        return None
    if row and row.key != manifest.provenance.weights:
        return None
    if request.architecture or request.changes or request.labels:
        return None
    wanted = _changed(manifest.preprocessing, request.preprocessing)
    return manifest if wanted == manifest.preprocessing else None


# --- where it is -------------------------------------------------------------------------------------


def _fetch(row: Pretrained, access: Access, say: Say) -> Found:
    """A row's file, in the cache or from the network, and its preprocessing."""
    say(f"{row.key} ({row.licence})")
    if not row.is_commercial:
        say(f"its licence, {row.licence}, forbids commercial use")
    preprocessing = row.preprocessing
    if path := row.config_path():
        preprocessing = _read_config(row, access.get(row.kind, path).path)
    weights = _first_file(row, access)
    if not weights.verified:
        say(f"no SHA-256 is published for {weights.url}: what came is {weights.sha256}")
    return Found(
        weights.path,
        weights.url,
        weights.sha256,
        architecture(row.architecture),
        row.num_parameters,
        preprocessing,
        imagenet_labels(),
        row.key,
        row.licence,
        row.published,
    )


def _first_file(row: Pretrained, access: Access) -> Download:
    """Of the names that the file may have."""
    failures = []
    for path in row.weight_paths():
        try:
            return access.get(row.kind, path, row.sha256)
        except DownloadError as error:
            if not (is_missing(error) or access.offline):
                raise
            failures.append(error)
    raise failures[0]


def _read_config(row: Pretrained, path: Path) -> Preprocessing:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise PretrainedError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise PretrainedError(f"{path} does not hold a description: expected a JSON object")
    return read_preprocessing(row.kind, config)


def _open(path: Path) -> Found:
    if not path.is_file():
        raise PullError(f"{path}: no such file")
    return Found(path, path.name, sha256_of(path))


# --- what it is --------------------------------------------------------------------------------------


def _map(found: Found, request: Request) -> ResNet:
    """A network of ours with these weights; of the size that it was published with."""
    state = read_state(found.path)
    spec = found.spec
    if request.architecture:
        spec = architecture(request.architecture, num_classes=_num_classes(state))
    if request.changes:
        spec = _with_changes(spec or load_foreign(state).spec, request.changes)
    model = load_foreign(state, spec)
    num_parameters = sum(p.numel() for p in model.parameters())
    if found.num_parameters not in (None, num_parameters):
        raise PullError(
            f"{found.source} makes a network of {num_parameters:,} parameters; "
            f"{found.num_parameters:,} were published"
        )
    return model


def _num_classes(state: Mapping[str, Tensor]) -> int:
    """Rows of the last matrix: the classifier's."""
    matrices = [tensor for tensor in state.values() if tensor.ndim == 2]
    if not matrices:
        raise PullError("no tensor is a matrix, so there is no classifier among them")
    return matrices[-1].shape[0]


def _with_changes(spec: Architecture, changes: Mapping[str, str]) -> Architecture:
    """Values as the command line gives them: text, made into what the field holds."""
    values: dict[str, Any] = {
        name: None if text.lower() == "none" else text for name, text in changes.items()
    }
    if "depths" in values:
        values["depths"] = values["depths"].split(",")
    try:
        checked = TypeAdapter(Architecture).validate_python(asdict(spec) | values)
    except ValidationError as error:
        first = error.errors()[0]
        raise PullError(f"--set {first['loc'][0]}={changes[str(first['loc'][0])]}: {first['msg']}") from error
    return replace(checked, num_parameters=None, num_macs=None)


def _describe(model: ResNet, found: Found, request: Request, say: Say) -> CheckpointMetadata:
    """Labels and preprocessing: as published, as asked for, or the usual ones, and then it is said."""
    spec = model.spec
    labels = found.labels
    if request.labels:
        labels = read_labels(request.labels)
    if labels is None:
        labels, about = _usual_labels(spec)
        say(f"{spec.name}, {spec.num_classes} classes: {about}; --labels gives others")
    if len(labels) != spec.num_classes:
        raise PullError(f"{len(labels)} labels for {spec.num_classes} classes")
    preprocessing = found.preprocessing or _usual_preprocessing(spec)
    preprocessing = _changed(preprocessing, request.preprocessing)
    if found.preprocessing is None:
        say(
            f"resize {preprocessing.resize}, crop {preprocessing.crop}, {preprocessing.interpolation}, "
            f"mean {_numbers(preprocessing.mean)}, std {_numbers(preprocessing.std)}; "
            "--resize --crop --interpolation --mean --std change it"
        )
    return CheckpointMetadata(
        architecture=describe_architecture(model),
        labels=labels,
        preprocessing=preprocessing,
        dataset=IMAGENET if found.key else None,
    )


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _changed(preprocessing: Preprocessing, changes: Mapping[str, object]) -> Preprocessing:
    try:
        changed = Preprocessing.model_validate(preprocessing.model_dump() | dict(changes))
    except ValidationError as error:
        first = error.errors()[0]
        raise PullError(f"--{first['loc'][0]} {changes[str(first['loc'][0])]}: {first['msg']}") from error
    if not 0 < changed.crop <= changed.resize:
        raise PullError(f"--crop {changed.crop} does not fit into --resize {changed.resize}: give both")
    if not all(value > 0 for value in changed.std):
        raise PullError(f"--std {_numbers(changed.std)}: must be above 0")
    return changed


def _is_cifar(spec: Architecture) -> bool:
    return spec.input_size == 32 and spec.num_classes in CIFAR_CLASSES


def _usual_labels(spec: Architecture) -> tuple[tuple[Label, ...], str]:
    if _is_cifar(spec):
        return cifar_labels(spec.num_classes), f"those of CIFAR-{spec.num_classes}"
    if spec.num_classes == NUM_CLASSES:
        return imagenet_labels(), f"those of {IMAGENET}"
    return tuple(Label(label=f"class {index}") for index in range(spec.num_classes)), "without names"


def _usual_preprocessing(spec: Architecture) -> Preprocessing:
    """Images of ImageNet's size are cropped to 7/8, smaller ones are taken whole."""
    size = spec.input_size
    mean, std = (CIFAR_MEAN, CIFAR_STD) if _is_cifar(spec) else ({}, {})
    return Preprocessing(
        resize=size * 8 // 7 if size >= 128 else size,
        crop=size,
        mean=mean.get(spec.num_classes, MEAN),
        std=std.get(spec.num_classes, STD),
    )


def read_labels(path: Path) -> tuple[Label, ...]:
    """Classes' names in order: one a line, or JSON: names, {"label", "wnid"} objects, or an object by index.

    Raises:
        PullError: unreadable, or neither.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json" and not text.lstrip().startswith(("[", "{")):
            return tuple(Label(label=line.strip()) for line in text.splitlines() if line.strip())
        found = json.loads(text)
        if isinstance(found, dict):
            by_index = {int(index): value for index, value in found.items()}
            found = [by_index[index] for index in range(len(by_index))]
        return tuple(Label(label=row) if isinstance(row, str) else Label.model_validate(row) for row in found)
    except OSError as error:
        raise PullError(f"--labels {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PullError(f"--labels {path}: expected one name a line, or JSON with names in order") from error
