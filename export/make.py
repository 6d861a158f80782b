"""A source of weights becomes an artifact: the steps in order, for `residuum export` and `residuum pull`.

Settings come in as plain values; this module reads no environment and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from artifact.manifest import Manifest, ManifestError, read_manifest, sha256_of
from export.from_checkpoint import from_checkpoint, from_random_weights
from export.from_weights import Found, Say, from_weights
from export.images import calibration_images
from export.pipeline import check_replaceable, export_artifact
from export.precisions import Precisions, read_images
from export.prune import check_prunable, prune_and_fine_tune
from export.source import (
    Network,
    Request,
    SourceError,
    SourceKind,
    check_options,
    directory_of,
    kind_of,
    options_of,
)
from models.pretrained import Pretrained, resolve

LOGS = Path("runs")  # of what is trained here
Fetch = Callable[[Pretrained], Found]


@dataclass(frozen=True)
class Made:
    """The artifact; `made` is false where it was there already."""

    path: Path
    manifest: Manifest
    made: bool


def make_artifact(request: Request, fetch: Fetch | None = None, say: Say = lambda _: None) -> Made:
    """Resolve, read, map, train, fuse, export, verify, describe; `say` is told what was decided on the way.

    Published weights and files of weights are made once: the artifact that is there already is returned, and
    one of other weights is kept unless the request forces it. A checkpoint and random weights replace what
    is there.

    Args:
        fetch: gets the file of published weights; None: only what lies on this disk can be made an artifact.

    Raises:
        SourceError, OptionError, PretrainedError, UnknownArchitecture, CheckpointError: what was asked for
            does not exist or does not fit.
        DownloadError, WeightsError, PruneError, TrainingError, ImagesError, GateError, QuantizeError,
            ExportError: from the steps that have these names.
    """
    kind = kind_of(request)
    row = resolve(request.weights) if kind == "published" else None
    path = Path(request.weights).expanduser()
    check_options(request, kind, row)
    options = options_of(request) if kind in ("published", "weights") else None
    out = directory_of(request, kind, row)
    if options is not None and not request.force and (there := _already(out, row or path, options)):
        return Made(out, there, made=False)
    check_replaceable(out.resolve())
    network = _read(request, kind, partial(fetch, row) if fetch and row else None, say)
    manifest = _export(network, request, out, options)
    return Made(out, manifest, made=True)


def _read(request: Request, kind: SourceKind, found: Callable[[], Found] | None, say: Say) -> Network:
    path = Path(request.weights).expanduser()
    if kind == "random":
        return from_random_weights(request.weights, request.seed or 0)
    if kind == "checkpoint":
        return from_checkpoint(path)
    if kind == "weights":
        return from_weights(Found(path, path.name, sha256_of(path)), request, say)
    if found is None:
        raise SourceError(f"{request.weights}: published weights cannot be fetched here")
    return from_weights(found(), request, say)


def _export(network: Network, request: Request, out: Path, options: dict[str, object] | None) -> Manifest:
    """Train what is asked for, and export."""
    model, metadata, provenance = network
    name = request.name or out.resolve().name
    asked, training = request.precisions, request.training
    if training.prune:
        check_prunable(model.spec, training.prune)
    calibration, validation = read_images(asked, metadata)
    if training.prune and asked.data:
        logs = LOGS / f"{name}-pruned-{training.prune:g}"
        model, metadata = prune_and_fine_tune(
            model, metadata, training.prune, training.prune_epochs, asked.data, logs
        )
        provenance["pruned"] = training.prune
    tuned = None
    if training.qat_epochs and calibration:  # int8 is not asked for without
        from export.qat import NUM_IMAGES, fine_tune_under_rounding

        served = metadata.preprocessing
        images = calibration_images(asked.data or asked.calibration or "", served, NUM_IMAGES).images
        tuned = fine_tune_under_rounding(model, served, calibration.images, images, training.qat_epochs)
    precisions = Precisions(
        asked.names,
        calibration,
        asked.allow_loss,
        asked.keep_layers,
        tuned,
        training.qat_epochs,
        request.time_graphs,
        request.measure_reference,
    )
    return export_artifact(
        model,
        metadata,
        name,
        out,
        options=options,
        validation=validation,
        precisions=precisions,
        **provenance,
    )


def _already(out: Path, weights: Pretrained | Path, options: dict[str, object]) -> Manifest | None:
    """The artifact at `out` if it is of these weights with these options; None: nothing sound is there.

    Raises:
        SourceError: another model is there.
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
        raise SourceError(
            f"{out} holds {holds}{', made with other options' if is_same else ''}: "
            "choose another --name, or --force replaces it"
        )
    try:
        return read_manifest(out)
    except ManifestError:
        return None
