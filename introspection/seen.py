"""The results for one image, from which the document, the arrays and the pictures are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

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

    def positions(self, blocks: Sequence[int]) -> slice | NDArray[np.intp]:
        """Return the index of the positions of these blocks, one after another, into a map of all blocks."""
        parts = [self.values.slices[index] for index in blocks]
        if all(before.stop == after.start for before, after in pairwise(parts)):
            return slice(parts[0].start, parts[-1].stop)
        return np.concatenate([np.arange(part.start, part.stop) for part in parts])

    def block_map(self, quantity: str, index: int) -> FloatArray:
        """Return one block's map, [H, W], NaN where null."""
        _, height, width = self.manifest.blocks[index].shape
        return self.values.maps[quantity][self.values.slices[index]].reshape(height, width)
