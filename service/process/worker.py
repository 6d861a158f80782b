"""The process of one worker; supervisor.py starts and replaces workers."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread
from types import FrameType

from fastapi import FastAPI

from engines.settings import SettingsError
from service.http.app import create_app
from service.process import interpreter
from service.process.entrance import Counts, Entrance
from service.process.fleet import Fleet
from service.process.messages import MAX_WHY, frame
from service.process.server import SHORTEST_END_S, Server, describe_models, until
from service.runtime import allocator
from service.runtime.lifecycle import Serving
from service.runtime.wanted import Change, Wanted
from service.settings import Settings
from service.telemetry import logs
from service.telemetry.metrics import count_as

logger = logging.getLogger("residuum")


@dataclass(frozen=True)
class Place:
    """The place of a worker among the workers of its server.

    Args:
        number, counts: see Entrance.
        connection, wanted: see Fleet.
        others_serve: whether another worker is ready. This one then listens only when it is ready too; else
            it listens at once, to answer that it is not ready.
    """

    number: int
    counts: Counts
    connection: socket.socket
    wanted: Wanted | None
    others_serve: bool


def work(settings: Settings, listener: socket.socket, place: Place) -> None:
    """Serve in a worker process until the supervisor ends it."""
    logs.configure(settings.log_format)
    allocator.give_back()
    interpreter.share_lock()
    Thread(target=_end_with_the_supervisor, args=(settings.drain_timeout,), daemon=True).start()
    fleet = Fleet(place.connection, place.wanted)
    count_as(place.number + 1)

    def when_loaded(serving: Serving) -> None:
        if serving.failure:
            fleet.say("failed", error="LoadError", why=str(serving.failure)[:MAX_WHY])
            server.should_exit = True
        elif not serving.is_draining:  # healthy or not: what it lacks, its successor would lack too
            interpreter.collect_rarely()
            loaded = [Change(each.name, each.directory, each.fingerprint) for each in serving.models]
            changes = [change.members() for change in loaded]
            fleet.say("ready", models=describe_models(serving)[:MAX_WHY], loaded=changes)

    try:
        app = create_app(settings, Serving(settings, when_loaded, fleet))
    except SettingsError as error:
        place.connection.sendall(frame("failed", error="SettingsError", why=str(error)[:MAX_WHY]))
        return
    server = WorkerServer(app, settings, listener, fleet, place)
    server.run([listener])


class WorkerServer(Server):
    """A server that shares its listening socket with other workers, and ends when they do."""

    def __init__(
        self, app: FastAPI, settings: Settings, listener: socket.socket, fleet: Fleet, place: Place
    ) -> None:
        super().__init__(app, settings, listener)
        self._fleet = fleet
        self._place = place
        self._entrance: Entrance

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with self._fleet:
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        if self._place.others_serve:
            await until(lambda: self._serving.state != "loading")
        if self.started:
            self._entrance = Entrance(
                self._listener,
                self._place.counts,
                self._place.number,
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
        # This may be the second signal: systemd signals every process. Only the supervisor ends at once.
        self.drain()

    async def close_entrance(self, latest: float) -> None:
        alone = False
        with suppress(TimeoutError):
            async with asyncio.timeout(latest - time.monotonic()):
                alone = await self._fleet.wait_until_all_idle()
        if alone:
            self._entrance.close()
        else:
            await super().close_entrance(latest)


def _end_with_the_supervisor(drain_timeout: float) -> None:
    """When the supervisor was killed, finish accepted requests and end, even if the event loop hangs."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(max(drain_timeout, SHORTEST_END_S))
    os._exit(1)
