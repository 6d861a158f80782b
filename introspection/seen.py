"""The results for one image, from which the document, the arrays and the pictures are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from artifact.manifest import Manifest, Precision
from artifact.preprocess import Preprocessed
from introspection.measure import Values
from introspection.readings import FloatArray


@dataclass(frozen=True)
class Run:
    """The run of a graph: precision, engine, and durations in `timing_ms`, by name."""

    precision: Precision
    engine: str
    timing_ms: Mapping[str, float]


@dataclass(frozen=True)
class Seen:
    """One image, the values that were measured for it, and the run.

    Attributes:
        manifest: of the artifact that looked at it.
    """

    manifest: Manifest
    values: Values
    image: Preprocessed
    run: Run

    @property
    def target_label(self) -> str:
        """The label of the class that contributions and lens are about."""
        return self.manifest.labels[self.values.target].label

    def block_map(self, quantity: str, index: int) -> FloatArray:
        """Return one block's map, [H, W], NaN where null."""
        _, height, width = self.manifest.blocks[index].shape
        return self.values.maps[quantity][self.values.slices[index]].reshape(height, width)
