"""One HTTP server: it runs until a signal, then finishes the requests that it has accepted.

Told to stop, a server goes on listening until accepted requests have finished, and for GRACE_S at least: it
answers that it is not ready and refuses new requests, so that load balancers go elsewhere and every client
gets an answer. Then it takes no more connections, waits for those that were just opened, and ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import time
from collections.abc import Callable
from threading import Timer
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.http.app import LAST_BATCH_S
from service.http.middleware.gate import Accepted
from service.http.protocol import protocol_for
from service.process.descriptors import DescriptorWatch
from service.process.listening import refuse_new_connections
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedGraph
from service.settings import Settings

logger = logging.getLogger("residuum")

# How long the server goes on refusing when nothing is left to finish: longer than a busy client's pause
# between two requests, and than a round trip around the world. A load balancer that asks less often needs a
# pause of its own before the signal.
GRACE_S = 0.5
# How long an idle connection then stays open: it may have been opened just now.
IDLE_S = 0.5
# The part of the drain timeout in which requests that are still unfinished are given up and answered.
ENDING_S = LAST_BATCH_S + 0.5
# The least time that a process is given to end; the drain timeout may be shorter.
SHORTEST_END_S = 1.0
# Longer than load balancers keep an unused connection (60 s): when the server closes one, the balancer may be
# sending a request over it, which is then lost.
KEEP_ALIVE_S = 75
TICK_S = 0.02


class Server(uvicorn.Server):
    """uvicorn, with our way to stop: see above."""

    def __init__(self, app: FastAPI, settings: Settings, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol_for(settings),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._serving: Serving = app.state.serving
        self._accepted: Accepted = app.state.accepted
        self._drain_timeout = settings.drain_timeout
        self._listener = listener
        self._told_at: float | None = None
        self._descriptors = DescriptorWatch()

    async def on_tick(self, counter: int) -> bool:
        self._descriptors.look()  # ten times a second, for 5 µs each
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told_at is not None:  # the second signal
            os._exit(128 + sig)
        self.drain()

    def drain(self) -> None:
        """Begin to stop; do nothing if called again. Signal handlers call it on the event loop's thread."""
        if self._told_at is not None:
            return
        self._told_at = time.monotonic()
        self.should_exit = True
        # The process ends in time even if an engine or the event loop hangs.
        last_resort = Timer(max(self._drain_timeout, SHORTEST_END_S), os._exit, [0])
        last_resort.daemon = True
        last_resort.start()
        # Later, in the event loop: this thread may hold a lock now that draining takes, such as a metric's.
        asyncio.get_running_loop().call_soon_threadsafe(self._serving.drain)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._told_at is not None:
            give_up_at = self._told_at + self._drain_timeout - min(ENDING_S, self._drain_timeout / 2)
            close_at = give_up_at - min(IDLE_S, self._drain_timeout / 4)
            grace_over_at = self._told_at + GRACE_S
            await until(
                lambda: time.monotonic() >= grace_over_at and not self._accepted.num_requests, close_at
            )
            await self.close_entrance(close_at)
            idle_over_at = time.monotonic() + IDLE_S
            await until(lambda: not self.server_state.connections, min(idle_over_at, give_up_at))
            left_s = max(TICK_S, give_up_at - time.monotonic())
            self.config.timeout_graceful_shutdown = left_s  # type: ignore[assignment]  # a float works too
        await super().shutdown(sockets)

    async def close_entrance(self, latest: float) -> None:
        """Take no more connections, by `latest` at the latest."""
        refuse_new_connections(self._listener)


async def until(condition: Callable[[], bool], end: float = math.inf) -> None:
    """Wait for a condition, at most until `end`, a time of `time.monotonic()`."""
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(TICK_S)


def describe_models(serving: Serving) -> str:
    """Return `resnet18 1.0 (classify fp32, onnxruntime 1.31.1 on cpu, 2 threads; ...)` for every model."""
    return ", ".join(
        f"{model.name} {model.manifest.version} ("
        + "; ".join(f"{kind} {describe_graph(graph)}" for kind, graph in model.graphs.items())
        + ")"
        for model in serving.models
    )


def describe_graph(graph: LoadedGraph) -> str:
    """Return such as `int8, openvino 2026.4.1 latency on cpu, 2 threads`."""
    engine = graph.engine
    mode = f" {engine.mode}" if engine.mode != engine.device else ""
    threads = f", {engine.threads} threads" if engine.threads else ""
    return f"{graph.precision}, {engine.name} {engine.version}{mode} on {engine.device}{threads}"
