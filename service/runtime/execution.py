"""Images and rows through a graph of a loaded model: admitted or refused, decoded, run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import GraphKind
from artifact.preprocess import Preprocessed, Row
from service.batching.batcher import Admission
from service.batching.types import Result
from service.errors import NotFound
from service.runtime.model import LoadedGraph, LoadedModel
from service.telemetry.stages import Stages

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Ran:
    """What came out for each image of a request, in order."""

    images: list[Preprocessed]
    results: list[Result]
    stages: Stages  # queue and inference: of the image that finished last


def stages_of(results: Sequence[Result], decode_ms: float) -> Stages:
    """How long a request took until now: queue and inference are those of the row that finished last."""
    last = max(results, key=lambda result: result.queue_ms + result.inference_ms)
    return Stages(decode_ms, last.queue_ms, last.inference_ms, last.batch_size)


def graph_of(model: LoadedModel, kind: GraphKind) -> LoadedGraph:
    """Raises NotFound: the model has no such graph."""
    if kind not in model.graphs:
        raise NotFound(f"The model {model.name!r} has no {kind} graph.")
    return model.graphs[kind]


async def _results(admission: Admission, rows: Sequence[Row]) -> list[Result]:
    futures: list[Future[Result]] = []
    try:
        futures = admission.submit(rows)
        return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
    finally:
        for future in futures:  # if one failed, the others' places are free again
            future.cancel()


async def _logits(admission: Admission, rows: Sequence[Row]) -> list[NDArray[np.float32]]:
    futures = deque(admission.submit(rows))
    found = []
    try:
        while futures:  # a future holds all that its batch gave
            found.append((await asyncio.wrap_future(futures[0])).outputs["logits"].copy())
            futures.popleft()
        return found
    finally:
        for future in futures:
            future.cancel()
