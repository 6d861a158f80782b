"""A source of weights becomes an artifact: the steps in order, for `residuum export` and `residuum pull`.

Settings come in as plain values; this module reads no environment and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from artifact.manifest import Manifest, ManifestError, read_manifest, sha256_of
from export.from_checkpoint import from_checkpoint, from_random_weights
from export.from_weights import Found, Say, from_weights
from export.images import CalibrationImages, calibration_images
from export.network import Network
from export.pipeline import check_replaceable, export_artifact
from export.precisions import ExportPlan, read_images
from export.prune import check_prunable, prune_and_fine_tune
from export.source import (
    Request,
    SourceError,
    SourceKind,
    Training,
    check_options,
    directory_of,
    kind_of,
    options_of,
)
from models.checkpoint import CheckpointMetadata
from models.pretrained import Pretrained, resolve
from models.resnet import ResNet

LOGS = Path("runs")  # of fine-tuning
Fetch = Callable[[Pretrained], Found]


@dataclass(frozen=True)
class Made:
    """The artifact; `made` is False if it existed already."""

    path: Path
    manifest: Manifest
    made: bool


def make_artifact(request: Request, fetch: Fetch | None = None, say: Say = lambda _: None) -> Made:
    """Resolve, read, map, train, fuse, export, verify, describe; `say` receives each decision in words.

    Published weights and files of weights are exported once: an existing artifact is returned, and an
    artifact of other weights is kept unless the request says `force`. A checkpoint and random weights replace
    what exists.

    Args:
        fetch: downloads published weights; None: only files on this disk can be exported.

    Raises:
        SourceError, OptionError, PretrainedError, UnknownArchitecture, CheckpointError: the source does not
            exist, or an option does not fit.
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
    network = replace(network, origin=replace(network.origin, options=options))
    if request.scaled_decoding:
        network = replace(network, metadata=_with_scaled_decoding(network.metadata))
    manifest = _export(network, request, out)
    return Made(out, manifest, made=True)


def _with_scaled_decoding(metadata: CheckpointMetadata) -> CheckpointMetadata:
    served = metadata.preprocessing.model_copy(update={"scaled_decoding": True})
    return metadata.model_copy(update={"preprocessing": served})


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


def _export(network: Network, request: Request, out: Path) -> Manifest:
    """Train what the request asks for, and export."""
    name = request.name or out.resolve().name
    asked, training = request.precisions, request.training
    if training.prune:
        check_prunable(network.model.spec, training.prune)
    calibration, validation = read_images(asked, network.metadata)
    if training.prune and asked.data:
        network = _pruned(network, training, asked.data, LOGS / f"{name}-pruned-{training.prune:g}")
    plan = ExportPlan(
        asked.names,
        calibration,
        validation,
        allow_loss=asked.allow_loss,
        keep_layers=asked.keep_layers,
        time_graphs=request.time_graphs,
        measure_reference=request.measure_reference,
    )
    if training.qat_epochs and calibration:  # int8 always has calibration images
        data = asked.data or asked.calibration or ""
        tuned = _tuned_for_int8(network, calibration, data, training.qat_epochs)
        plan = replace(plan, quantized_model=tuned, qat_epochs=training.qat_epochs)
    return export_artifact(network, name, out, plan)


def _pruned(network: Network, training: Training, data: str, logs: Path) -> Network:
    model, metadata = prune_and_fine_tune(
        network.model, network.metadata, training.prune, training.prune_epochs, data, logs
    )
    return Network(model, metadata, replace(network.origin, pruned=training.prune))


def _tuned_for_int8(network: Network, calibration: CalibrationImages, data: str, epochs: int) -> ResNet:
    """Return the fused network with weights that were fine-tuned for int8 on images of a data set."""
    from export.qat import NUM_IMAGES, fine_tune_under_rounding

    served = network.metadata.preprocessing
    images = calibration_images(data, served, NUM_IMAGES).images
    return fine_tune_under_rounding(network.model, served, calibration.images, images, epochs)


def _already(out: Path, weights: Pretrained | Path, options: dict[str, object]) -> Manifest | None:
    """Return the artifact at `out` if it has these weights and options; None: there is no sound artifact.

    Raises:
        SourceError: it is an artifact of another model, or has other options.
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
