"""A network that is here already: a checkpoint of `residuum train`, or random weights for benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from export.prune import check_prunable
from export.random_weights import RANDOM, random_model, sha256_of_weights
from models.checkpoint import CheckpointMetadata, load_checkpoint
from models.manifest import sha256_of
from models.resnet import ResNet


class SourceError(Exception):
    """There is no network where one was asked for; the message says why."""


class Network(NamedTuple):
    """A network in evaluation mode, what is known of it, and where it came from.

    Attributes:
        provenance: fields of `models.manifest.Provenance`.
        usual_name: of an artifact that is given no other name.
    """

    model: ResNet
    metadata: CheckpointMetadata
    provenance: dict[str, Any]
    usual_name: str


def from_checkpoint(path: Path) -> Network:
    """Return the network in a checkpoint.

    Raises:
        SourceError: no such file.
        CheckpointError: the file is not a checkpoint of ours.
    """
    if not path.is_file():
        raise SourceError(
            f"{path}: no such checkpoint (--weights random takes a row of the zoo; "
            "residuum pull takes published weights)"
        )
    model, metadata = load_checkpoint(path)
    recipe = metadata.recipe or {}
    source = f"residuum train {recipe['name']}" if "name" in recipe else f"checkpoint {path.name}"
    provenance: dict[str, Any] = {"source": source, "weights_sha256": sha256_of(path)}
    return Network(model, metadata, provenance, path.resolve().parent.name)


def from_random_weights(architecture: str, seed: int) -> Network:
    """Return a row of the zoo with random weights, for benchmarks and tests.

    Raises:
        UnknownArchitecture: the zoo has no row of that name.
    """
    model, metadata = random_model(architecture, seed)
    provenance: dict[str, Any] = {
        "source": f"random weights, seed {seed}",
        "weights": RANDOM,
        "weights_sha256": sha256_of_weights(model),
    }
    return Network(model, metadata, provenance, model.spec.name)


def check_pruning(model: ResNet, ratio: float, data: str | None) -> None:
    """Raise SourceError or PruneError where the network cannot be pruned, before anything is trained."""
    if data is None:
        raise SourceError("--prune fine-tunes and is measured on --data: give it")
    check_prunable(model.spec, ratio)
