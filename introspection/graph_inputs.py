"""A question about one image -> the graph that answers it, and the rows that the graph takes.

What was not asked for is not run: contributions and lens take a slower graph, and lesions a row a block.
The route, the command line and the measuring of references share this. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import TOP_CLASS, Graph, GraphKind, Manifest
from artifact.preprocess import Row
from introspection.quantities import LESIONS, group_of, why_absent
from introspection.question import Question
from introspection.readings import LesionLogits


def graph_kind(manifest: Manifest, question: Question) -> GraphKind:
    """Return the cheapest graph that gives what was asked for and exists."""
    needs_attribute = any(
        group_of(name).source == "attribute" and not why_absent(name, manifest)
        for name in (*question.maps, *question.groups)
    )
    return "attribute" if needs_attribute else "introspect"


def image_row(graph: Graph, pixels: NDArray[np.uint8], question: Question) -> Row:
    """Return the row for that graph, of an image as the model takes it, [H, W, 3]."""
    return {"images": pixels, **inputs(graph, question)}


def inputs(graph: Graph, question: Question) -> dict[str, NDArray[Any]]:
    """Return what that row has beside the image."""
    found: dict[str, NDArray[Any]] = {"gates": question.gates_L}
    if any(tensor.name == "target" for tensor in graph.inputs):
        target = question.target.index
        found["target"] = np.array(TOP_CLASS if target is None else target, np.int64)
    return found


def num_lesion_rows(question: Question) -> int:
    """Return the length of `lesion_rows` for the blocks asked for; 0 if lesions were not asked for."""
    return len(question.blocks) + 1 if LESIONS in question.groups else 0


def lesion_rows(pixels: NDArray[np.uint8], gates_L: NDArray[np.float32], blocks: Iterable[int]) -> list[Row]:
    """Return rows for the introspect graph: nothing removed, then each of the blocks by itself."""
    rows: list[Row] = [{"images": pixels, "gates": gates_L}]
    for index in blocks:
        without_L = gates_L.copy()
        without_L[index] = 0
        rows.append({"images": pixels, "gates": without_L})
    return rows


def lesion_logits(question: Question, logits: Sequence[NDArray[np.float32]]) -> LesionLogits | None:
    """Return the logits, [K] each, that came out for the rows of `lesion_rows`; None if there were none."""
    return LesionLogits(question.blocks, np.stack(logits)) if logits else None
