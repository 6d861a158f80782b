"""What a running server holds, and what every route does with it.

A route that answers about images goes: `serving_of(request)` -> `with serving.lease(name) as model` ->
`read_images` (body.py) -> `while_client_waits(request, deadline, work)`, where the work is
`serving.run_images(model, kind, images, deadline)`: admitted or refused, decoded, run. Batches and futures
meet HTTP here: this is where the batcher's errors become problems.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from artifact.errors import ResiduumError
from artifact.manifest import GraphKind
from artifact.preprocess import Limits, Row
from artifact.store import artifacts_in
from engines.machine import num_cores
from service.batching.types import BatchFailed, Closed, DeadlineMissed, Paused, QueueFull, Result
from service.errors import DeadlineExceeded, EngineFailed, LoadRefused, NotReady, Overloaded
from service.runtime.cache import AnswerCache
from service.runtime.decoding import DecodePool
from service.runtime.drawing import DrawingPool
from service.runtime.execution import Ran, _logits, _results, graph_of, stages_of
from service.runtime.model import LoadedGraph, LoadedModel
from service.runtime.monitor import Monitor
from service.runtime.opening import LoadError
from service.runtime.repository import Repository
from service.runtime.watch import changed_artifacts
from service.settings import Settings
from service.telemetry.metrics import Metrics

logger = logging.getLogger("residuum")

T = TypeVar("T")
Apply = Callable[[str, str], Awaitable[None]]  # action ("load" or "unload"), name of the model
State = Literal["loading", "ready", "unhealthy", "draining", "failed"]


class Fleet(Protocol):
    """The other workers of this server, which make the same changes to their models."""

    async def submit(self, action: str, name: str) -> None:
        """Have every worker make a change, this one too."""

    async def catch_up(self, apply: Apply) -> None:
        """Make the changes that were made before this worker was started."""

    async def follow(self, apply: Apply) -> None:
        """Make every change that any worker submits, until cancelled."""


class Serving:
    """Settings, models, pools of threads and state of one server; `app.state.serving`.

    Args:
        when_loaded: called once, when the models are loaded (`state` is "ready") or cannot be ("failed",
            and `failure` says why).
        fleet: the other workers of this server; None: there are none.
    """

    def __init__(
        self,
        settings: Settings,
        when_loaded: Callable[[Serving], None] = lambda _: None,
        fleet: Fleet | None = None,
    ) -> None:
        self.settings = settings
        self.failure: LoadError | None = None
        self.metrics = Metrics()
        self.decoders = DecodePool(
            settings.decode_threads or max(1, num_cores() // settings.workers),
            Limits(settings.max_image_bytes, settings.max_image_pixels),
            self.metrics,
        )
        self.drawings = DrawingPool()
        self.cache = AnswerCache(settings.cache_bytes, self.metrics)
        self._state: Literal["loading", "ready", "draining", "failed"] = "loading"
        self._models: Repository | None = None
        self._monitor: Monitor | None = None
        self._fleet = fleet
        self._tasks: list[asyncio.Task[None]] = []
        self._changing = asyncio.Lock()  # one model is loaded or unloaded at a time
        self._stop = Event()
        self._when_loaded = when_loaded

    # --- its life

    @property
    def state(self) -> State:
        if self._state == "ready" and (self.broken or not any(self.models)):
            return "unhealthy"
        return self._state

    @property
    def broken(self) -> dict[str, str]:
        """`model graph` -> why it cannot serve now."""
        return self._monitor.broken if self._monitor else {}

    async def load(self) -> None:
        """Load the models; meanwhile the server answers, but is not ready."""
        try:
            models = await asyncio.to_thread(Repository, self.settings, self.metrics, self._stop)
            await self._start(models)
        except Exception as error:  # also what nobody foresaw must not leave it loading for ever
            if self._stop.is_set():
                return
            if not isinstance(error, ResiduumError):
                logger.exception("Loading failed")
            self.failure = LoadError(str(error) or repr(error))
            self._enter("failed")
        else:
            if self._state == "loading":
                self._enter("ready")
        self._when_loaded(self)

    async def _start(self, models: Repository) -> None:
        """What goes on beside the requests."""
        self._models = models
        self._monitor = Monitor(
            models,
            self.metrics,
            check_interval=self.settings.check_interval,
            hang_timeout=self.settings.hang_timeout,
            changed=self._engines_changed,
        )
        self._keep_doing(self._monitor.run())
        if self.settings.watch:
            for directory in artifacts_in(self.settings.artifacts):
                await self._load_found(directory)
            self._keep_doing(self._watch())
        if self._fleet is not None:
            await self._fleet.catch_up(self._change)
            self._keep_doing(self._fleet.follow(self._change))

    def _keep_doing(self, work: Coroutine[Any, Any, None]) -> None:
        """Until the server drains; that it has ended before is told, as nobody waits for it."""

        def tell(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("%s has failed", task.get_coro(), exc_info=error)

        task = asyncio.create_task(work)
        task.add_done_callback(tell)
        self._tasks.append(task)

    def _engines_changed(self) -> None:
        self.cache.clear()
        self.metrics.state(self.state)

    def drain(self) -> None:
        """Say from now on that it is not ready, and load no further; what was accepted goes on."""
        self._enter("draining")
        self._stop.set()
        for task in self._tasks:
            task.cancel()

    def close(self, timeout_s: float) -> None:
        """End the threads; by now no request is left."""
        self.decoders.close()
        self.drawings.close()
        if self._models is not None:
            self._models.close(timeout_s)

    def _enter(self, state: Literal["ready", "draining", "failed"]) -> None:
        self._state = state
        self.metrics.state(self.state)

    # --- its models

    @property
    def models(self) -> Repository:
        """The loaded models, also while draining, when accepted requests finish.

        Raises:
            NotReady: while loading, or when loading failed.
        """
        if self._models is None:
            why = f"failed: {self.failure}" if self.failure else "loading its models"
            raise NotReady(f"The server is not ready: {why}.")
        return self._models

    def lease(self, name: str | None) -> AbstractContextManager[LoadedModel]:
        """The model of that name, None for the default one, which stays open until the end of `with`.

        Raises:
            UnknownModel, NotReady.
        """
        return self.models.lease(name)

    async def load_model(self, name: str) -> None:
        """Load an artifact by its name, or swap a loaded model for what lies in its directory now.

        Raises:
            UnknownModel: there is none of that name.
            LoadRefused: it cannot be served; what was loaded before is served on.
        """
        await self._submit("load", name)

    async def unload_model(self, name: str) -> None:
        """Serve that model no more; requests that have it finish. Raises UnknownModel."""
        await self._submit("unload", name)

    async def _submit(self, action: Literal["load", "unload"], name: str) -> None:
        if self._fleet is not None:
            await self._fleet.submit(action, name)
        else:
            await self._change(action, name)

    async def _change(self, action: str, name: str) -> None:
        async with self._changing:
            if action == "unload":
                self.models.remove(name)
                self.metrics.state(self.state)  # it may have been the one that was broken
                logger.info("%s is unloaded", name)
            else:
                await self._load_from(await asyncio.to_thread(self.models.locate, name))

    async def _load_from(self, directory: Path) -> None:
        model = await asyncio.to_thread(self.models.load, directory)
        self.models.put(model)
        self.metrics.state(self.state)
        logger.info("%s is loaded: version %s", model.name, model.manifest.version)

    async def _watch(self) -> None:
        async for directory in changed_artifacts(self.settings.artifacts):
            await self._load_found(directory)

    async def _load_found(self, directory: Path) -> None:
        """Load or swap an artifact that was found, unless it is what is loaded; a bad one is only logged."""
        async with self._changing:
            try:
                if not await asyncio.to_thread(self.models.is_current, directory):
                    await self._load_from(directory)
            except LoadRefused as error:
                logger.error("%s", error.detail)

    # --- its requests

    def deadline(self, timeout_ms: int | None) -> float:
        """When a request that starts now must be answered, in `time.monotonic()`; clients only shorten it."""
        return time.monotonic() + min(timeout_ms or self.settings.timeout_ms, self.settings.timeout_ms) / 1000

    def seconds_until_free(self) -> float:
        """When all that has been admitted should be done, on whatever device it waits."""
        now = time.monotonic()
        schedulers = self.models.devices.schedulers
        return max((scheduler.seconds_until_free(now) for scheduler in schedulers), default=0.0)

    def check_room(self, model: LoadedModel, kind: GraphKind, deadline: float) -> None:
        """Refuse before the body is read what would be refused after; raises as `run_images`."""
        with self._problems(graph := graph_of(model, kind)):
            graph.batcher.check_room(1, deadline, self.decoders.seconds_for(1))

    def check_time(self, model: LoadedModel, kind: GraphKind, num_rows: int, deadline: float) -> None:
        """Refuse at once rows that cannot be done in time, be they more than the queue holds.

        Raises:
            DeadlineExceeded: they cannot, even if nothing else comes.
            NotFound: the model has no such graph.
        """
        with self._problems(graph := graph_of(model, kind)):
            graph.batcher.check_time(num_rows, deadline)

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
        """Image files through a graph of the model; all are admitted or none.

        Args:
            inputs: what the graph takes beside the image, the same for all.

        Raises:
            Overloaded, DeadlineExceeded, NotReady, EngineFailed: refused, too late, or the engine failed.
            BadImage, TooManyBytes: of the first bad one.
            NotFound: the model has no such graph.
        """
        graph = graph_of(model, kind)
        started = time.monotonic()
        with self._problems(graph):
            decoded_in_s = self.decoders.seconds_for(len(images))
            with graph.batcher.admit(len(images), deadline, decoded_in_s) as admission:
                spec = model.manifest.preprocessing
                photographs = await self.decoders.preprocess(images, spec, keep_original)
                decode_s = time.monotonic() - started
                for _ in photographs:
                    graph.meter.decoded(decode_s / len(photographs))
                rows = [{"images": photograph.pixels, **(inputs or {})} for photograph in photographs]
                results = await _results(admission, rows)
        return Ran(photographs, results, stages_of(results, decode_s * 1000))

    async def run_rows(
        self, model: LoadedModel, kind: GraphKind, rows: Sequence[Row], deadline: float
    ) -> list[Result]:
        """Every row through a graph of the model, in order; raises as `run_images`, but for images."""
        graph = graph_of(model, kind)
        with self._problems(graph), graph.batcher.admit(len(rows), deadline) as admission:
            return await _results(admission, rows)

    async def run_logits(
        self, model: LoadedModel, kind: GraphKind, rows: Sequence[Row], deadline: float
    ) -> list[NDArray[np.float32]]:
        """As `run_rows`, but of what comes out only the logits are kept."""
        graph = graph_of(model, kind)
        with self._problems(graph), graph.batcher.admit(len(rows), deadline) as admission:
            return await _logits(admission, rows)

    @contextmanager
    def _problems(self, graph: LoadedGraph) -> Iterator[None]:
        """The batcher's errors as problems."""
        try:
            yield
        except QueueFull as error:
            raise Overloaded(
                "As many images are waiting as the server takes.", error.retry_after_s
            ) from error
        except DeadlineMissed as error:
            raise DeadlineExceeded(
                "The images cannot be done before the request's deadline.", error.retry_after_s
            ) from error
        except Paused as error:
            raise EngineFailed("The engine failed and is being built anew.") from error
        except BatchFailed as error:
            logger.error("A batch failed: %s", error)
            if self._monitor is not None:
                self._monitor.suspect(graph)
            raise EngineFailed("The engine failed on the batch that the images were in.") from error
        except Closed as error:
            raise NotReady("The server is shutting down.") from error
