"""The rows that a question needs, run through a loaded model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from artifact.preprocess import Preprocessed, Row
from introspection.graph_inputs import graph_kind, image_row, lesion_logits, lesion_rows, num_lesion_rows
from introspection.measure import measure
from introspection.question import Question
from introspection.seen import Run, Seen
from service.runtime.model import LoadedModel

# Lesions wait in chunks: large enough to keep several instances busy, and a small part of the queue.
BATCHES_A_CHUNK = 4
QUEUE_PART = 4  # a chunk takes at most one in this many places of the queue


def lesion_chunks(
    model: LoadedModel, pixels: NDArray[np.uint8], question: Question
) -> Iterator[Sequence[Row]]:
    """Yield the rows of the lesions asked for, in chunks that fill batches and leave others room."""
    if not num_lesion_rows(question):
        return
    batcher = model.graphs["introspect"].batcher
    size = BATCHES_A_CHUNK * batcher.largest_batch
    if batcher.queue_capacity:
        size = max(1, min(batcher.queue_capacity // QUEUE_PART, size))
    rows = lesion_rows(pixels, question.gates_L, question.blocks)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def introspect(model: LoadedModel, image: Preprocessed, question: Question) -> Seen:
    """Answer a question about one image, without a server.

    Raises:
        KeyError: the artifact has no introspect graph.
        NotFiniteError: activations left float32's range.
        BatchFailed: the engine failed.
    """
    graph = model.graphs[graph_kind(model.manifest, question)]
    [future] = graph.batcher.submit([image_row(graph.graph, image.pixels, question)])
    result = future.result()
    removed = [
        future.result().outputs["logits"].copy()
        for chunk in lesion_chunks(model, image.pixels, question)
        for future in model.graphs["introspect"].batcher.submit(chunk)
    ]
    lesions = lesion_logits(question, removed)
    values = measure(model.manifest, result.outputs, target=question.target.index, lesions=lesions)
    run = Run(graph.precision, graph.engine.name, {"inference": result.inference_ms})
    return Seen(model.manifest, values, image, run)
