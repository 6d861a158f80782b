"""Several processes that serve one port: `supervise(settings, listener)`.

The supervisor holds the listening socket and shares it with its workers, each a whole server (worker.py), so
that no worker's end loses the connections that wait in the socket's queue. A worker that dies or hangs is
replaced. The first worker loads alone: it measures undisturbed which engine is the fastest, and the others
use its choice.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from enum import Enum
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from engines.settings import SettingsError
from service.process.agreement import Agreement
from service.process.entrance import CLOSED, Counts
from service.process.listening import url_of
from service.process.member import Life, Member
from service.process.messages import ALIVE_S, BadMessage, receive
from service.process.server import SHORTEST_END_S, until
from service.process.worker import Place, work
from service.runtime.monitor import RETRY_S
from service.runtime.opening import LoadError
from service.runtime.wanted import Change
from service.settings import Settings

logger = logging.getLogger("residuum")

SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads without the threads

START_S = 120.0  # until a new process sends a message: it imports everything, perhaps on a busy machine
# Pauses before a worker starts again, by how often it has died soon after its start; the last one repeats.
PAUSES_S = (0.0, *RETRY_S[1:])
ALONE_S = 1.0  # the longest of these pauses while no worker answers requests
LEAST_HANG_S = 5.0  # --hang-timeout is meant for batches, and may be shorter than a busy machine needs
MAX_SHOWN = 200  # characters of a bad message
END_S = 10.0  # until a process that has closed its connection ends by itself

ERRORS: dict[str, type[Exception]] = {"LoadError": LoadError, "SettingsError": SettingsError}


def supervise(settings: Settings, listener: socket.socket) -> None:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT; a second signal ends them at once.

    Raises:
        SettingsError, LoadError: see `serve`.
    """
    with TemporaryDirectory(prefix="residuum-") as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # the workers' metrics
        supervisor = Supervisor(settings, listener, directory)
        asyncio.run(supervisor.run())
    if supervisor.failure:
        raise supervisor.failure
    if supervisor.exit_code:
        sys.exit(supervisor.exit_code)


class Phase(Enum):
    """What the server as a whole is doing; the phases follow in this order."""

    LOADING = "no worker was ready yet"
    SERVING = "a worker was ready"
    COMPLETE = "all workers were ready at once"
    STOPPING = "every worker is told to end"


class Supervisor:
    """Keeps the workers running, in an event loop that is never busy for long."""

    def __init__(self, settings: Settings, listener: socket.socket, directory: str) -> None:
        self.failure: Exception | None = None
        self.exit_code = 0
        self._settings = settings
        self._listener = listener
        self._url = url_of(listener)
        self._directory = directory
        self._phase = Phase.LOADING
        self._members: set[Member] = set()  # the processes that have not ended
        self._agreement = Agreement(self._members)
        self._counts: Counts = SPAWN.RawArray(ctypes.c_int, [CLOSED] * settings.workers)

    async def run(self) -> None:
        """Run until a signal, or until the first worker cannot load; then `failure` says why."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        await asyncio.gather(*(self._keep_running(number + 1) for number in range(self._settings.workers)))

    @property
    def _stopping(self) -> bool:
        return self._phase is Phase.STOPPING

    def _any_ready(self) -> bool:
        return any(member.was_ready for member in self._members)

    # --- start and replace workers

    async def _keep_running(self, number: int) -> None:
        """Run one process after another as worker `number`, until the server stops."""
        deaths = 0
        while not self._stopping:
            await until(lambda: self._stopping or not self._members or self._any_ready())
            if self._stopping:
                return
            try:
                member = await self._run(number)
            except OSError as error:  # no memory, process or socket is available
                if self._phase is Phase.LOADING:
                    raise
                why, was_stable = f"not started: {error}", False
            else:
                why, was_stable = member.why_it_ended, member.was_stable
            if not self._stopping:
                deaths = 1 if was_stable else deaths + 1
                pause_s = PAUSES_S[min(deaths, len(PAUSES_S)) - 1]
                logger.error("Worker %d: %s; the next one starts in %g s", number, why, pause_s)
                await self._pause(pause_s)

    async def _pause(self, seconds: float) -> None:
        """Wait before a worker starts again; shortly if no other answers requests meanwhile."""
        now = time.monotonic()
        await until(lambda: self._stopping or self._any_ready(), now + min(seconds, ALONE_S))
        await until(lambda: self._stopping or not self._any_ready(), now + seconds)

    async def _run(self, number: int) -> Member:
        """Run one process until it has ended."""
        connection, theirs = socket.socketpair()
        with theirs:
            member = Member(number, self._start(number, theirs))
        self._members.add(member)
        await self._watch(member, connection)
        self._remove(member)
        return member

    def _start(self, number: int, connection: socket.socket) -> SpawnProcess:
        place = Place(number - 1, self._counts, connection, self._agreement.wanted, self._any_ready())
        process = SPAWN.Process(
            target=work,
            args=(self._settings, self._listener, place),
            daemon=True,  # it ends when this process ends in any way
        )
        # Ctrl-C reaches all processes of a terminal; only the supervisor handles it, and tells the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process

    async def _watch(self, member: Member, connection: socket.socket) -> None:
        """Listen to a worker until it has ended; kill it when it is silent for too long, or not understood.

        Looks are counted rather than time read from a clock: when the whole machine or container was paused,
        no worker has hung.
        """
        listening = asyncio.create_task(self._listen(member, await member.connect(connection)))
        silent_s, limit_s = 0.0, START_S
        while silent_s < limit_s and not listening.done():
            await asyncio.wait({listening}, timeout=ALIVE_S)
            silent_s += ALIVE_S
            if member.was_heard:
                member.was_heard = False
                silent_s, limit_s = 0.0, max(self._settings.hang_timeout, LEAST_HANG_S)
        if not listening.done():
            logger.error("%s hangs and is killed", member)
            listening.cancel()
            member.process.kill()
        elif (error := listening.exception()) is not None:
            logger.error("%s is killed, because a message of it is bad: %s", member, error)
            member.process.kill()
        await asyncio.to_thread(member.process.join, END_S)
        member.process.kill()
        await asyncio.to_thread(member.process.join)

    async def _listen(self, member: Member, reader: asyncio.StreamReader) -> None:
        """Read a worker's messages until it has closed the connection; raise BadMessage."""
        while (message := await receive(reader)) is not None:
            member.was_heard = True
            try:
                self._on_message(member, message)
            except Exception as error:  # no message may end the supervisor
                raise BadMessage(f"{message.get('kind', '')!r}: {error!r}"[:MAX_SHOWN]) from error

    def _remove(self, member: Member) -> None:
        """Forget a worker whose process has ended; end the server if none was ready yet."""
        self._members.remove(member)
        member.mark_ended()
        self._counts[member.number - 1] = CLOSED
        mark_process_dead(member.number, self._directory)  # type: ignore[no-untyped-call]
        if self._phase is Phase.LOADING:
            self.failure = member.failure or LoadError(f"while it was loading, {member.why_it_ended}")
            self._stop()
        self._let_end()

    def _on_message(self, member: Member, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "alive":
                pass
            case "ready":
                member.mark_ready(message["models"])
                self._agreement.take_over(member, [Change.from_members(each) for each in message["loaded"]])
                self._announce(member)
            case "failed":
                member.failure = ERRORS[message["error"]](message["why"])
            case "found":
                self._agreement.note(member, Change.from_members(message))
            case "submit":
                self._agreement.submit(member, message["id"], Change.from_members(message))
            case "changed":
                member.mark_made(message["id"], Change.from_members(message), message["why"])
            case "idle":
                member.life = Life.IDLE
                self._let_end()
            case kind:
                raise ValueError(f"a kind {kind!r} that is not known")

    def _announce(self, member: Member) -> None:
        if self._stopping:
            return
        if self._phase is Phase.LOADING:
            self._phase = Phase.SERVING
        if self._phase is Phase.COMPLETE:
            logger.info("%s is ready", member)
        elif sum(each.was_ready for each in self._members) == self._settings.workers:
            self._phase = Phase.COMPLETE
            logger.info("Ready: %s, %d workers at %s", member.models, self._settings.workers, self._url)

    # --- stop

    def _on_signal(self, number: int) -> None:
        if self._stopping:
            self.exit_code = 128 + number
            self._kill()
        else:
            self._stop()

    def _stop(self) -> None:
        self._phase = Phase.STOPPING
        self._listener.close()  # the workers hold it too; the end of the last one closes it
        for member in self._members:
            member.process.terminate()
        in_time_s = max(self._settings.drain_timeout, SHORTEST_END_S)
        asyncio.get_running_loop().call_later(in_time_s, self._kill)

    def _let_end(self) -> None:
        """Let idle workers end: while stopping all at once, since all refuse new requests until then."""
        if not self._stopping or all(member.life is Life.IDLE for member in self._members):
            for member in self._members:
                if member.life is Life.IDLE:
                    member.say("close", alone=not self._stopping)

    def _kill(self) -> None:
        for member in self._members:
            member.process.kill()
