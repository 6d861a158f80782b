"""Networks of ours: a checkpoint of `residuum train`, or random weights for benchmarks and tests."""

from __future__ import annotations

from pathlib import Path

from artifact.manifest import sha256_of
from export.network import Network, Origin
from export.random_weights import RANDOM, random_model, sha256_of_weights
from models.checkpoint import load_checkpoint


def from_checkpoint(path: Path) -> Network:
    """Return the network in a checkpoint.

    Raises:
        CheckpointError: the file is not a checkpoint of ours, or its tensors do not fit.
    """
    model, metadata = load_checkpoint(path)
    recipe = metadata.recipe or {}
    source = f"residuum train {recipe['name']}" if "name" in recipe else f"checkpoint {path.name}"
    return Network(model, metadata, Origin(source, sha256_of(path)))


def from_random_weights(architecture: str, seed: int) -> Network:
    """Return a row of the zoo with random weights.

    Raises:
        UnknownArchitecture: the zoo has no row of that name.
    """
    model, metadata = random_model(architecture, seed)
    origin = Origin(f"random weights, seed {seed}", sha256_of_weights(model), weights=RANDOM)
    return Network(model, metadata, origin)
