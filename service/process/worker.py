"""One of several processes that serve a port, from the inside; workers.py is its supervisor."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Thread
from types import FrameType

from fastapi import FastAPI

from engines.settings import SettingsError
from service.http.app import create_app
from service.process import allocator
from service.process.entrance import Counts, Entrance
from service.process.fleet import Fleet, line
from service.process.server import SHORTEST_END_S, Server, describe_models, until
from service.runtime.changes import Action
from service.runtime.lifecycle import Serving
from service.settings import Settings
from service.telemetry import logs
from service.telemetry.metrics import count_as

logger = logging.getLogger("residuum")


def work(
    settings: Settings,
    listener: socket.socket,
    connection: socket.socket,
    changes: Sequence[tuple[Action, str]],
    counts: Counts,
    number: int,
    others_serve: bool,
) -> None:
    """What a worker process does.

    Args:
        connection, changes: as of Fleet.
        counts, number: as of Entrance.
        others_serve: listen only when ready; else at once, to say that it is not.
    """
    logs.configure(settings.log_format)
    allocator.give_back()
    Thread(target=_end_with_the_supervisor, args=(settings.drain_timeout,), daemon=True).start()
    fleet = Fleet(connection, changes)
    count_as(number + 1)

    def when_loaded(serving: Serving) -> None:
        if serving.failure:
            fleet.say("failed", error="LoadError", why=str(serving.failure))
            server.should_exit = True
        elif serving.state == "ready":
            fleet.say("ready", models=describe_models(serving))

    try:
        app = create_app(settings, Serving(settings, when_loaded, fleet))
    except SettingsError as error:
        connection.sendall(line("failed", error="SettingsError", why=str(error)))
        return
    server = _Server(app, settings, listener, fleet, counts, number)
    server.listen_when_ready = others_serve
    server.run([listener])


class _Server(Server):
    """A server that ends with the others."""

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        listener: socket.socket,
        fleet: Fleet,
        counts: Counts,
        number: int,
    ) -> None:
        super().__init__(app, settings, listener)
        self._fleet = fleet
        self._counts = counts
        self._number = number
        self._entrance: Entrance
        self.listen_when_ready = False  # else at once, to answer that it is not ready

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with self._fleet:
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        if self.listen_when_ready:
            await until(lambda: self._serving.state != "loading")
        if self.started:
            self._entrance = Entrance(
                self._listener,
                self._counts,
                self._number,
                lambda: len(self.server_state.connections),
                lambda: self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn makes them
                    config=self.config, server_state=self.server_state, app_state=self.lifespan.state
                ),
            )
            self._entrance.open()
            self.servers.append(self._entrance)  # type: ignore[arg-type]  # uvicorn closes them at the end

    async def on_tick(self, counter: int) -> bool:
        self._entrance.count()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Perhaps not the first: systemd signals every process itself. Who may be impatient is the supervisor.
        self.drain()

    async def close_door(self, latest: float) -> None:
        alone = False
        with suppress(TimeoutError):
            async with asyncio.timeout(latest - time.monotonic()):
                alone = await self._fleet.wait_until_all_idle()
        if alone:
            self._entrance.close()
        else:
            await super().close_door(latest)


def _end_with_the_supervisor(drain_timeout: float) -> None:
    """If it is killed, finish what was accepted, and end, even if the event loop hangs."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(max(drain_timeout, SHORTEST_END_S))
    os._exit(1)
