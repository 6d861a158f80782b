"""Weights that others trained become an artifact: the steps in order.

Published weights come by name from the table in `models/pretrained.py`, anything else from a file. Settings
come in as plain values; this module reads no environment and prints nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from export.images import name_of
from export.options import (
    MAX_PIXELS,
    changed_preprocessing,
    check_fields,
    flags_of,
    numbers,
    read_labels,
    usual_labels,
    usual_preprocessing,
    with_changes,
)
from export.pipeline import export_artifact
from export.precisions import MeasureReference, PrecisionRequest, Precisions, TimeGraphs, read_images
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.download import Download, DownloadError, Progress, discard, download, is_missing
from models.identify import untold
from models.imagenet import imagenet_labels
from models.manifest import (
    Manifest,
    ManifestError,
    Preprocessing,
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
from models.weights import WeightsError, load_foreign, read_state
from models.zoo import architecture

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
        precisions: what is made beside fp32.
        time_graphs, measure_reference: see `export.precisions.Precisions`.
        force: make it even if it, or another model of that name, is there.
    """

    weights: str
    artifacts: Path
    name: str | None = None
    architecture: str | None = None
    changes: Mapping[str, str] = field(default_factory=dict)
    labels: Path | None = None
    preprocessing: Mapping[str, object] = field(default_factory=dict)
    precisions: PrecisionRequest = field(default_factory=PrecisionRequest)
    time_graphs: TimeGraphs | None = None
    measure_reference: MeasureReference | None = None
    force: bool = False


@dataclass(frozen=True)
class Pulled:
    """The artifact; `made` is false where it was there already."""

    path: Path
    manifest: Manifest
    made: bool


@dataclass(frozen=True)
class Found:
    """A file of weights; of published ones also their row and preprocessing.

    `is_doubtful`: it lies in our cache, and nobody published its SHA-256.
    """

    path: Path
    source: str
    sha256: str
    preprocessing: Preprocessing | None = None
    row: Pretrained | None = None
    is_doubtful: bool = False


def pull(request: Request, access: Access, say: Say = lambda _: None) -> Pulled:
    """Resolve, download, map, verify, fuse, export, describe; `say` hears what was decided on the way.

    Raises:
        PullError, OptionError, PretrainedError, UnknownArchitecture: what was asked for does not exist or
            does not fit.
        DownloadError, WeightsError, ImagesError, GateError, QuantizeError, ExportError: from the steps that
            have these names.
    """
    row = None if is_file(request.weights) else resolve(request.weights)
    path = Path(request.weights).expanduser()
    if row is None:
        _check_file(path)
    _check_options(request, row)
    options = _options(request)
    out = request.artifacts / _artifact_name(request, row)
    if not request.force and (there := _already(out, row or path, options)):
        return Pulled(out, there, made=False)
    found = _fetch(row, access, say) if row else Found(path, path.name, sha256_of(path))
    model = _map(found, request)
    metadata = _describe(model, found, request, say)
    asked = request.precisions
    calibration, validation = read_images(asked, metadata)
    precisions = Precisions(
        asked.names,
        calibration,
        asked.allow_loss,
        asked.keep_layers,
        time_graphs=request.time_graphs,
        measure_reference=request.measure_reference,
    )
    manifest = export_artifact(
        model,
        metadata,
        out.name,
        out,
        source=found.source,
        weights_sha256=found.sha256,
        weights=row.key if row else None,
        licence=row.licence if row else None,
        published_accuracy=row.published if row else None,
        options=options,
        validation=validation,
        precisions=precisions,
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
    check_fields(request.changes)
    # Where the preprocessing is not known yet, one that every crop fits into.
    known = row.preprocessing if row else None
    changed_preprocessing(
        known or Preprocessing(resize=MAX_PIXELS, crop=1, mean=MEAN, std=STD),
        request.preprocessing,
    )


def _options(request: Request) -> dict[str, object]:
    """What is asked otherwise than by default, as JSON holds it; the same for the same artifact."""
    options: dict[str, object] = {
        "preprocessing": dict(request.preprocessing),
        "architecture": request.architecture and architecture(request.architecture).name,
        "changes": dict(request.changes),
        "labels_sha256": request.labels and _sha256_of_labels(request.labels),
        **_precision_options(request.precisions),
    }
    given = {name: value for name, value in options.items() if value}
    return dict(json.loads(json.dumps(given)))


def _precision_options(asked: PrecisionRequest) -> dict[str, object]:
    """Data sets by their names: where they lie on this machine is nobody's business."""
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
        raise PullError(f"--labels {path}: {error.strerror}") from error


def _artifact_name(request: Request, row: Pretrained | None) -> str:
    name = request.name or (row.architecture if row else Path(request.weights).name.split(".")[0])
    if not re.fullmatch(r"[\w][\w.+-]*", name):
        raise PullError(f"{name!r} cannot be a model's name: letters, digits, '_', '-' and '.'; give --name")
    return name


def _already(out: Path, weights: Pretrained | Path, options: dict[str, object]) -> Manifest | None:
    """The artifact at `out` if it is of these weights with these options; None: nothing sound is there.

    Raises:
        PullError: another model is there.
    """
    try:
        provenance = read_manifest(out, verify=False).provenance
    except ManifestError:
        return None
    if isinstance(weights, Path):
        is_same = provenance.weights is None and provenance.weights_sha256 == sha256_of(weights)
    else:
        begins = provenance.weights_sha256.startswith(weights.sha256 or "")
        is_same = provenance.weights == weights.key and begins
    if not is_same or provenance.options != options:
        holds = provenance.weights or provenance.source
        raise PullError(
            f"{out} holds {holds}{', made with other options' if is_same else ''}: "
            "choose another --name, or --force replaces it"
        )
    try:
        return read_manifest(out)
    except ManifestError:
        return None


# --- where it is -------------------------------------------------------------------------------------


def _fetch(row: Pretrained, access: Access, say: Say) -> Found:
    """A row's file, in the cache or from the network, and its preprocessing."""
    say(f"{row.key} ({row.licence})")
    if not row.is_commercial:
        say(f"its licence, {row.licence}, forbids commercial use")
    preprocessing = row.preprocessing
    if path := row.config_path():
        config = access.get(row.kind, path)
        with _dropped_if_bad(config.path, not config.verified):
            preprocessing = _read_config(row, config.path)
    weights = _first_file(row, access)
    if not weights.verified:
        say(f"no SHA-256 is published for {weights.url}: what came is {weights.sha256}")
    return Found(weights.path, weights.url, weights.sha256, preprocessing, row, not weights.verified)


@contextmanager
def _dropped_if_bad(path: Path, is_doubtful: bool) -> Iterator[None]:
    """What cannot be read and nobody vouches for, such as a web page, leaves the cache."""
    try:
        yield
    except (WeightsError, PretrainedError) as error:
        if not is_doubtful:
            raise
        discard(path)
        raise PullError(
            f"{error}; it was removed from the cache, and the next run fetches it anew"
        ) from error


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


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise PullError(f"{path} is a folder: expected a file of weights")
    if not path.is_file():
        raise PullError(f"{path}: no such file")


# --- what it is --------------------------------------------------------------------------------------


def _map(found: Found, request: Request) -> ResNet:
    """A network of ours with these weights; of the size that it was published with."""
    with _dropped_if_bad(found.path, found.is_doubtful):
        state = read_state(found.path)
    name = found.row.architecture if found.row else request.architecture
    spec = architecture(name) if name else None
    if request.changes:
        spec = with_changes(spec or load_foreign(state).spec, request.changes)
    try:
        model = load_foreign(state, spec)
    except ValueError as error:  # fields that are fine one by one and together make no network
        if not request.changes:
            raise
        raise PullError(f"{flags_of(request.changes)}: {error}") from error
    num_parameters = sum(p.numel() for p in model.parameters())
    if found.row and found.row.num_parameters != num_parameters:
        raise PullError(
            f"{found.source} makes a network of {num_parameters:,} parameters; "
            f"{found.row.num_parameters:,} were published"
        )
    return model


def _describe(model: ResNet, found: Found, request: Request, say: Say) -> CheckpointMetadata:
    """Labels and preprocessing: as published, as asked for, or the usual ones, and then it is said."""
    spec = model.spec
    if request.labels:
        labels = read_labels(request.labels)
    elif found.row:
        labels = imagenet_labels()
    else:
        labels, about = usual_labels(spec)
        say(f"{spec.name}, {spec.num_classes} classes: {about}; --labels gives others")
    if len(labels) != spec.num_classes:
        raise PullError(f"{len(labels)} labels for {spec.num_classes} classes")
    preprocessing = found.preprocessing or usual_preprocessing(spec)
    preprocessing = changed_preprocessing(preprocessing, request.preprocessing)
    if found.preprocessing is None:
        say(
            f"resize {preprocessing.resize}, crop {preprocessing.crop}, {preprocessing.interpolation}, "
            f"mean {numbers(preprocessing.mean)}, std {numbers(preprocessing.std)}; "
            "--resize --crop --interpolation --mean --std change it"
        )
    if not (found.row or request.architecture):
        for sentence in untold(spec):
            say(sentence)
    if found.row and (published := found.row.published) and published.pixels != preprocessing.crop:
        say(f"published top-1 is of images of {published.pixels} pixels; {preprocessing.crop} are served")
    return CheckpointMetadata(
        architecture=describe_architecture(model),
        labels=labels,
        preprocessing=preprocessing,
        dataset=IMAGENET if found.row else None,
    )
