"""A network that is to be exported, what must be known of it, and where its weights came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from artifact.manifest import Provenance, PublishedAccuracy
from models.checkpoint import CheckpointMetadata
from models.resnet import ResNet


@dataclass(frozen=True)
class Origin:
    """Where weights came from, as the manifest's `Provenance` has it.

    Attributes:
        source: for people: a recipe, a file's name or a URL.
        weights_sha256: of the file, or of the tensors if there is no file.
        weights: the lasting name of published weights.
        options: what the user asked for beside the defaults; the same weights with the same options are not
            exported twice. None: exported each time.
        pruned: fraction of the hidden channels that were dropped.
    """

    source: str
    weights_sha256: str
    weights: str | None = None
    licence: str | None = None
    published_accuracy: PublishedAccuracy | None = None
    options: dict[str, Any] | None = None
    pruned: float | None = None


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, its metadata, and the origin of its weights."""

    model: ResNet
    metadata: CheckpointMetadata
    origin: Origin

    def provenance(self) -> Provenance:
        """Return what the manifest says of the weights."""
        return Provenance(
            **vars(self.origin),
            num_parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            recipe=self.metadata.recipe,
            dataset=self.metadata.dataset,
            commit=self.metadata.commit,
            seed=self.metadata.seed,
            checkpoint_accuracy=self.metadata.accuracy,
        )
