"""A question about one image -> the rows that answer it, and through which of a model's graphs they go.

What was not asked for is not run: contributions and lens take a slower graph, and lesions a row a block.
The route, the command line and the measuring of references share this. It knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import TOP_CLASS, GraphKind
from service.attribution import LesionLogits
from service.batch_types import Row
from service.introspection import ATTRIBUTED, Quantities, measure, why_absent
from service.introspection_answer import Run
from service.introspection_query import LESION, Options
from service.loading import LoadedGraph, LoadedModel

# Of lesions that wait at once: enough to keep several instances busy, and not all of a queue that others use.
BATCHES_A_CHUNK = 4
QUEUE_PART = 4  # at most one in so many of its places


def graph_kind(model: LoadedModel, options: Options) -> GraphKind:
    """The cheapest graph that gives what was asked for and exists."""
    wanted = set(ATTRIBUTED) & {*options.maps, *options.groups}
    return "attribute" if any(not why_absent(name, model.manifest) for name in wanted) else "introspect"


def image_row(graph: LoadedGraph, pixels: NDArray[np.uint8], options: Options) -> Row:
    """The row for that graph, of an image as the model takes it, [H, W, 3]."""
    return {"images": pixels, **inputs(graph, options)}


def inputs(graph: LoadedGraph, options: Options) -> dict[str, NDArray[Any]]:
    """What that row has beside the image."""
    found: dict[str, NDArray[Any]] = {"gates": options.gates_L}
    if any(tensor.name == "target" for tensor in graph.graph.inputs):
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


def lesion_chunks(model: LoadedModel, pixels: NDArray[np.uint8], options: Options) -> Iterator[Sequence[Row]]:
    """The rows of the lesions asked for, so many at a time that full batches form and others get in."""
    if not num_lesion_rows(options):
        return
    batcher = model.graphs["introspect"].batcher
    size = max(1, min(batcher.queue_capacity // QUEUE_PART, BATCHES_A_CHUNK * batcher.largest_batch))
    rows = lesion_rows(pixels, options.gates_L, options.blocks)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def lesion_logits(options: Options, logits: Sequence[NDArray[np.float32]]) -> LesionLogits | None:
    """Of the logits, [K], that came out for all rows of `lesion_chunks`; None if there were none."""
    return LesionLogits(options.blocks, np.stack(logits)) if logits else None


def introspect(model: LoadedModel, pixels: NDArray[np.uint8], options: Options) -> tuple[Quantities, Run]:
    """All that was asked for about one image, and how its own row ran; without a server.

    Raises:
        KeyError: the artifact has no introspect graph.
        NotFiniteError: activations left float32's range.
        BatchFailed: the engine failed.
    """
    graph = model.graphs[graph_kind(model, options)]
    [future] = graph.batcher.submit([image_row(graph, pixels, options)])
    result = future.result()
    removed = [
        future.result().outputs["logits"].copy()
        for chunk in lesion_chunks(model, pixels, options)
        for future in model.graphs["introspect"].batcher.submit(chunk)
    ]
    lesions = lesion_logits(options, removed)
    quantities = measure(model.manifest, result.outputs, target=options.target.index, lesions=lesions)
    return quantities, Run(graph.precision, graph.engine.name, {"inference": result.inference_ms})
