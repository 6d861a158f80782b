"""What a running server holds, and what every route does with it.

A route that answers about images goes: `serving_of(request)` -> `.model(name)` -> `read_images` (body.py)
-> `while_client_waits(request, deadline, work)`, where the work is `.decoders.preprocess(...)`, then
`.run(batcher, rows, deadline)`. Batches and futures meet HTTP here: this is where the batcher's errors become
problems.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from threading import Event
from typing import Any, Literal, TypeVar

from starlette.requests import ClientDisconnect, Request

from models.preprocess import Limits
from service.batcher import Batcher, Closed, DeadlineMissed, QueueFull, Result, Row
from service.decoding import DecodePool
from service.engines.machine import num_cores
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.repository import LoadedModel, LoadError, Repository
from service.settings import Settings

logger = logging.getLogger("residuum")

T = TypeVar("T")
State = Literal["loading", "ready", "draining", "failed"]


class Serving:
    """Settings, models, decode pool and state of one server; `app.state.serving`.

    Args:
        when_loaded: called once, when the models are loaded (`state` is "ready") or cannot be ("failed",
            and `failure` says why).
    """

    def __init__(self, settings: Settings, when_loaded: Callable[[Serving], None] = lambda _: None) -> None:
        self.settings = settings
        self.state: State = "loading"
        self.failure: LoadError | None = None
        self.decoders = DecodePool(
            settings.decode_threads or num_cores(),
            settings.queue_capacity,
            Limits(settings.max_image_bytes, settings.max_image_pixels),
        )
        self._models: Repository | None = None
        self._stop = Event()
        self._when_loaded = when_loaded

    async def load(self) -> None:
        """Load the models; meanwhile the server answers, but is not ready."""
        try:
            self._models = await asyncio.to_thread(Repository, self.settings, self._stop)
        except Exception as error:  # also what nobody foresaw must not leave it loading for ever
            if self._stop.is_set():
                return
            if not isinstance(error, LoadError):
                logger.exception("Loading failed")
            self.state, self.failure = "failed", LoadError(str(error) or repr(error))
        else:
            if self.state == "loading":
                self.state = "ready"
        self._when_loaded(self)

    def drain(self) -> None:
        """Say from now on that it is not ready, and load no further; what was accepted goes on."""
        self.state = "draining"
        self._stop.set()

    def close(self, timeout_s: float) -> None:
        """End the threads; by now no request is left."""
        self.decoders.close()
        if self._models is not None:
            self._models.close(timeout_s)

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

    def model(self, name: str | None) -> LoadedModel:
        """The model of that name, None for the default one; raises UnknownModel or NotReady."""
        return self.models.get(name)

    def deadline(self, timeout_ms: int | None) -> float:
        """When a request that starts now must be answered, in `time.monotonic()`; clients only shorten it."""
        return time.monotonic() + min(timeout_ms or self.settings.timeout_ms, self.settings.timeout_ms) / 1000

    async def run(self, batcher: Batcher, rows: Sequence[Row], deadline: float) -> list[Result]:
        """Every row through the graph behind `batcher`, in order; all are accepted or none.

        Raises:
            Overloaded, DeadlineExceeded, NotReady: refused, or too late.
            BatchFailed: the engine failed.
        """
        futures: list[Future[Result]] = []
        try:
            futures = batcher.submit(rows, deadline)
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        except QueueFull as error:
            raise Overloaded(
                "As many images are waiting as the server takes.", error.retry_after_s
            ) from error
        except DeadlineMissed as error:
            raise DeadlineExceeded(
                "The images cannot be done before the request's deadline.", error.retry_after_s
            ) from error
        except Closed as error:
            raise NotReady("The server is shutting down.") from error
        finally:
            for future in futures:  # if one failed, the others' places are free again
                future.cancel()


def serving_of(request: Request) -> Serving:
    """The server that this request came to."""
    serving: Serving = request.app.state.serving
    return serving


async def while_client_waits(request: Request, deadline: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves or the deadline passes.

    The request's body must have been read.

    Raises:
        ClientDisconnect: the client left.
        DeadlineExceeded: the deadline passed.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        timeout = max(0.0, deadline - time.monotonic())
        await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise DeadlineExceeded("The request's deadline has passed.")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
