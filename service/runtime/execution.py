"""Images and rows through a graph of a loaded model: admitted or refused, decoded, run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import GraphKind
from artifact.preprocess import Preprocessed, Row
from service.batching.admission import Admission
from service.batching.types import BatchFailed, DeadlineMissed, Result
from service.errors import NotFound
from service.runtime.decoding import DecodePool
from service.runtime.load import LoopLag
from service.runtime.mailbox import Gathering, Mailbox, results_of
from service.runtime.model import LoadedGraph, LoadedModel
from service.runtime.repository import Repository
from service.telemetry.stages import Stages

logger = logging.getLogger("residuum")


@dataclass(frozen=True)
class Ran:
    """The preprocessed images of a request and the graph's results, in order."""

    images: list[Preprocessed]
    results: list[Result]
    stages: Stages  # `queue` and `inference` belong to the image that finished last


def stages_of(results: Sequence[Result], decode_ms: float) -> Stages:
    """Return how long a request took until now; queue and inference are those of the slowest row."""
    last = max(results, key=lambda result: result.queue_ms + result.inference_ms)
    return Stages(decode_ms, last.queue_ms, last.inference_ms, last.batch_size)


def graph_of(model: LoadedModel, kind: GraphKind) -> LoadedGraph:
    """Return a graph of the model; raise NotFound if the model has none of that kind."""
    if kind not in model.graphs:
        raise NotFound(f"The model {model.name!r} has no {kind} graph.")
    return model.graphs[kind]


class Execution:
    """Runs what requests bring.

    Args:
        models: the repository whose devices are shared by all graphs.
        suspect: called with a graph on which a batch failed.
        lag: how late the event loop runs, which counts as time that a request will take.
        timeout_ms: the longest that a request may take.
    """

    def __init__(
        self,
        models: Repository,
        decoders: DecodePool,
        suspect: Callable[[LoadedGraph], None],
        lag: LoopLag,
        timeout_ms: int,
    ) -> None:
        self._models = models
        self._decoders = decoders
        self._suspect = suspect
        self._lag = lag
        self._timeout_ms = timeout_ms
        self._latest_mailbox: Mailbox | None = None

    def deadline(self, timeout_ms: int | None) -> float:
        """Return when a request that starts now must be answered, in `time.monotonic()`.

        A client's own timeout can only shorten the server's.
        """
        return time.monotonic() + min(timeout_ms or self._timeout_ms, self._timeout_ms) / 1000

    def seconds_until_free(self) -> float:
        """Return in how many seconds all admitted work should be done, on every device."""
        now = time.monotonic()
        schedulers = self._models.devices.schedulers
        return max((scheduler.seconds_until_free(now) for scheduler in schedulers), default=0.0)

    def check_room(self, model: LoadedModel, kind: GraphKind, deadline: float) -> None:
        """Raise what `run_images` would raise for one image now, before its body is read."""
        ready_in_s = self._decoders.seconds_for(1)
        # The loop is late twice: when the body has come, and when the answer is there.
        graph_of(model, kind).batcher.check_room(1, deadline - 2 * self._lag.seconds, ready_in_s)

    def check_time(self, model: LoadedModel, kind: GraphKind, num_rows: int, deadline: float) -> None:
        """Refuse rows that cannot be done in time; there may be more of them than the queue holds.

        Raises:
            DeadlineMissed: the rows would be late even if nothing else came.
            NotFound: the model has no such graph.
        """
        graph_of(model, kind).batcher.check_time(num_rows, deadline)

    async def run_images(
        self,
        model: LoadedModel,
        kind: GraphKind,
        images: Sequence[bytes],
        deadline: float,
        *,
        inputs: Mapping[str, NDArray[Any]] | None = None,
        keep_original: bool = False,
    ) -> Ran:
        """Run image files through a graph of the model; all are admitted or none.

        Args:
            inputs: what the graph takes beside the image, the same for all images.

        Raises:
            QueueFull, DeadlineMissed, Paused, Closed, BatchFailed: refused, too late, or the engine failed.
            ImageError: the first image that cannot be used.
            NotFound: the model has no such graph.
        """
        graph = graph_of(model, kind)
        started = time.monotonic()
        with (
            self._suspecting(graph),
            graph.batcher.admit(len(images), deadline, self._decoders.seconds_for(len(images))) as admission,
        ):
            passage = _Passage(self._mailbox(), admission, started, inputs or {})
            decoding = self._decoders.preprocess(
                images,
                model.manifest.preprocessing,
                passage.run,
                keep_original=keep_original,
                deadline=deadline,
                late=lambda: DeadlineMissed(self.seconds_until_free()),
            )
            done = False
            try:
                await passage.gathering.wait()
                done = True
            finally:
                took_s = time.monotonic() - started
                graph.batcher.forecast.note(admission.expected_s, took_s, done=done)
                decoding.cancel()
                passage.leave()
        for _ in images:
            graph.meter.decoded(passage.decode_s / len(images))
        results = [future.result() for future in passage.futures]
        return Ran(passage.photographs, results, stages_of(results, passage.decode_s * 1000))

    async def run_rows(
        self, model: LoadedModel, kind: GraphKind, rows: Sequence[Row], deadline: float
    ) -> list[Result]:
        """Run every row through a graph of the model, in order; raise as `run_images` but for images."""
        graph = graph_of(model, kind)
        with self._suspecting(graph), graph.batcher.admit(len(rows), deadline) as admission:
            return await results_of(admission.submit(rows), self._mailbox())

    async def run_logits(
        self, model: LoadedModel, kind: GraphKind, rows: Sequence[Row], deadline: float
    ) -> list[NDArray[np.float32]]:
        """Run rows as `run_rows` does, and keep only the logits of what comes out."""
        graph = graph_of(model, kind)
        with self._suspecting(graph), graph.batcher.admit(len(rows), deadline) as admission:
            return await _logits(admission, rows, self._mailbox())

    def _mailbox(self) -> Mailbox:
        """Return the mailbox of the event loop that runs the caller."""
        loop = asyncio.get_running_loop()
        if self._latest_mailbox is None or self._latest_mailbox.loop is not loop:
            self._latest_mailbox = Mailbox(loop)
        return self._latest_mailbox

    @contextmanager
    def _suspecting(self, graph: LoadedGraph) -> Iterator[None]:
        """Report a graph for checking if a batch fails on it."""
        try:
            yield
        except BatchFailed as error:
            logger.error("A batch failed: %s", error)
            self._suspect(graph)
            raise


class _Passage:
    """Images of one request on their way from the decode pool to the batcher's queue, past the event loop."""

    def __init__(
        self,
        mailbox: Mailbox,
        admission: Admission,
        started: float,
        inputs: Mapping[str, NDArray[Any]],
    ) -> None:
        self.gathering = Gathering(mailbox)
        self.photographs: list[Preprocessed] = []
        self.futures: list[Future[Result]] = []
        self.decode_s = 0.0
        self._admission = admission
        self._started = started
        self._inputs = inputs
        self._left = False

    def run(self, decoded: list[Preprocessed] | Exception) -> None:
        """Queue the rows of the images, on the thread that decoded the last one."""
        self.decode_s = time.monotonic() - self._started
        if isinstance(decoded, Exception):
            self.gathering.fail(decoded)
            return
        self.photographs = decoded
        try:
            self.futures = self._admission.submit(
                [{"images": photograph.pixels, **self._inputs} for photograph in decoded]
            )
        except Exception as error:
            self.gathering.fail(error)
            return
        self.gathering.expect(self.futures)
        if self._left:  # meanwhile
            self.leave()

    def leave(self) -> None:
        """Free the places in the queue of rows that nobody waits for any more."""
        self._left = True
        for future in self.futures:
            future.cancel()


async def _logits(admission: Admission, rows: Sequence[Row], mailbox: Mailbox) -> list[NDArray[np.float32]]:
    futures = deque(admission.submit(rows))
    found = []
    try:
        while futures:  # a future holds all outputs of its row, so each is dropped as soon as it is read
            found.append((await results_of([futures[0]], mailbox))[0].outputs["logits"].copy())
            futures.popleft()
        return found
    finally:
        for future in futures:
            future.cancel()
