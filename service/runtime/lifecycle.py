"""The life of one server: `Serving` loads the models, says whether it is ready, drains and closes.

What a server does lies in its parts, which know nothing of one another's callers: `models` (repository.py),
`execution` (execution.py) for requests, `changes` (changes.py) for models that come and go, and a monitor
that checks the engines. A route about images goes:

    with serving.models.lease(name) as model:
        images = await read_images(...)
        work = serving.execution.run_images(model, kind, images, deadline)
        ran = await while_client_waits(request, deadline, work)

    loading -> ready -> draining       and, while ready, `unhealthy`: a graph is broken, or no default model
    loading -> failed -> draining
    loading -> draining
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from artifact.errors import ResiduumError
from artifact.preprocess import Limits
from engines.machine import num_cores, num_memory_bytes
from service.runtime.cache import AnswerCache
from service.runtime.changes import Changes, Fleet
from service.runtime.decoding import DecodePool
from service.runtime.drawing import DrawingPool
from service.runtime.execution import Execution
from service.runtime.load import HeldBytes, LoopLag
from service.runtime.load_threads import LoadThreads
from service.runtime.monitor import Monitor
from service.runtime.opening import LoadError
from service.runtime.repository import Repository
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.metrics import ServerState as State

logger = logging.getLogger("residuum")


MEMORY_PARTS = 4  # of which decoding large images may take one

# The states that may follow each entered state. UNHEALTHY is derived, and never entered.
NEXT = {
    State.LOADING: {State.READY, State.FAILED, State.DRAINING},
    State.READY: {State.DRAINING},
    State.FAILED: {State.DRAINING},
    State.DRAINING: set[State](),
}


class Serving:
    """Settings, models and pools of threads of one server; `app.state.serving`.

    Args:
        when_loaded: called once, when loading has ended: with `failure` if it failed.
        fleet: the workers of this server; None if this process is the only one.
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
            settings.decode_bytes or num_memory_bytes() // (MEMORY_PARTS * settings.workers),
            self.metrics,
        )
        self.drawings = DrawingPool()
        self.cache = AnswerCache(settings.cache_bytes, self.metrics)
        self.models = Repository(settings, self.metrics)
        self._monitor = Monitor(
            self.models,
            self.metrics,
            check_interval=settings.check_interval,
            hang_timeout=settings.hang_timeout,
            changed=self._graphs_changed,
        )
        self.held_bytes = HeldBytes(settings.queue_bytes)
        self._lag = LoopLag()
        self.execution = Execution(
            self.models, self.decoders, self._monitor.suspect, self._lag, settings.timeout_ms
        )
        self._load_threads = LoadThreads(settings.load_timeout)
        watched = settings.artifacts if settings.watch else None
        self.changes = Changes(self.models, self._load_threads, watched, fleet, self._tell_state)
        self._when_loaded = when_loaded
        self._tasks: list[asyncio.Task[None]] = []
        self._entered = State.LOADING

    @property
    def state(self) -> State:
        """The state entered last; UNHEALTHY instead of READY if a graph is broken or no default is loaded."""
        if self._entered is State.READY and (self.broken or self.models.default is None):
            return State.UNHEALTHY
        return self._entered

    @property
    def is_draining(self) -> bool:
        """Whether `state` is DRAINING. Every request asks this, so it looks at nothing else."""
        return self._entered is State.DRAINING

    @property
    def broken(self) -> dict[str, str]:
        """Why graphs cannot serve now, by `model graph`."""
        return self._monitor.broken

    async def load(self) -> None:
        """Load the models and start what runs beside the requests; requests are refused until then."""
        try:
            await self.changes.load_at_start()
            self._start()
        except Exception as error:  # an unforeseen error must not leave the server loading for ever
            if self._load_threads.stopped:
                return
            if not isinstance(error, ResiduumError):
                logger.exception("Loading failed")
            self.failure = LoadError(str(error) or repr(error))
            self._enter(State.FAILED)
        else:
            self._enter(State.READY)
        self._when_loaded(self)

    def drain(self) -> None:
        """Load no further and say that the server is not ready; accepted requests go on."""
        self._enter(State.DRAINING)
        self._load_threads.stop()
        for task in self._tasks:
            task.cancel()

    def close(self, timeout_s: float) -> None:
        """End all threads, when no request is left."""
        self.decoders.close()
        self.drawings.close()
        self._load_threads.close(timeout_s)
        self.models.close(timeout_s)

    def _start(self) -> None:
        self._keep_running(self._monitor.run())
        self._keep_running(self._lag.run())
        self._keep_running(self.changes.watch())
        self._keep_running(self.changes.load_lacking())
        self._keep_running(self.changes.follow())

    def _keep_running(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the server drains; log an error that ends it, since no caller awaits it."""

        def log_failure(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("%s has failed", task.get_coro(), exc_info=error)

        task = asyncio.create_task(work)
        task.add_done_callback(log_failure)
        self._tasks.append(task)

    def _graphs_changed(self) -> None:
        """Clear the cache after a graph broke or was rebuilt, because kept answers may be wrong."""
        self.cache.clear()
        self._tell_state()

    def _enter(self, state: State) -> None:
        """Enter a state if it may follow the current one; a server that drains stays in that state."""
        if state in NEXT[self._entered]:
            self._entered = state
            self._tell_state()

    def _tell_state(self) -> None:
        self.metrics.state(self.state)
