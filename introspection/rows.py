"""A question about one image -> the rows that answer it, and through which of a model's graphs they go.

What was not asked for is not run: contributions and lens take a slower graph, and lesions a row a block.
The route, the command line and the measuring of references share this. It knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import TOP_CLASS, Graph, GraphKind, Manifest, Precision
from artifact.preprocess import Row
from introspection.attribution import LesionLogits
from introspection.quantities import (
    ATTRIBUTED,
    LESION,
    why_absent,
)
from introspection.question import Options


def graph_kind(manifest: Manifest, options: Options) -> GraphKind:
    """The cheapest graph that gives what was asked for and exists."""
    wanted = set(ATTRIBUTED) & {*options.maps, *options.groups}
    return "attribute" if any(not why_absent(name, manifest) for name in wanted) else "introspect"


def image_row(graph: Graph, pixels: NDArray[np.uint8], options: Options) -> Row:
    """The row for that graph, of an image as the model takes it, [H, W, 3]."""
    return {"images": pixels, **inputs(graph, options)}


def inputs(graph: Graph, options: Options) -> dict[str, NDArray[Any]]:
    """What that row has beside the image."""
    found: dict[str, NDArray[Any]] = {"gates": options.gates_L}
    if any(tensor.name == "target" for tensor in graph.inputs):
        target = options.target.index
        found["target"] = np.array(TOP_CLASS if target is None else target, np.int64)
    return found


def num_lesion_rows(options: Options) -> int:
    """As many as `lesion_chunks` gives."""
    return len(options.blocks) + 1 if LESION in options.groups else 0


def lesion_rows(pixels: NDArray[np.uint8], gates_L: NDArray[np.float32], blocks: Iterable[int]) -> list[Row]:
    """For the introspect graph: nothing removed, then each of the blocks by itself."""
    rows: list[Row] = [{"images": pixels, "gates": gates_L}]
    for index in blocks:
        without_L = gates_L.copy()
        without_L[index] = 0
        rows.append({"images": pixels, "gates": without_L})
    return rows


def lesion_logits(options: Options, logits: Sequence[NDArray[np.float32]]) -> LesionLogits | None:
    """Of the logits, [K], that came out for all rows of `lesion_chunks`; None if there were none."""
    return LesionLogits(options.blocks, np.stack(logits)) if logits else None


@dataclass(frozen=True)
class Run:
    """Which graph ran, where, and how long: `timing_ms` by name."""

    precision: Precision
    engine: str
    timing_ms: Mapping[str, float]
