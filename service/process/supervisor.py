"""Several processes that serve one port: `supervise(settings, listener)`.

The supervisor holds the listening socket and shares it with its workers, each a whole server (worker.py):
what waits in the queue of that socket is lost with none of them. A worker that dies or hangs is
replaced. The first one loads alone, so that it measures undisturbed which engine is the fastest, and the
others find its choice; one that joins others that serve listens only when it is ready.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.context import SpawnProcess
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from engines.settings import SettingsError
from service.process.entrance import CLOSED, Counts
from service.process.fleet import ALIVE_S, line
from service.process.listening import url_of
from service.process.server import SHORTEST_END_S, until
from service.process.worker import work
from service.runtime.opening import LoadError
from service.settings import Settings

logger = logging.getLogger("residuum")

SPAWN = multiprocessing.get_context("spawn")  # a fork would copy threads' locks, and not the threads

START_S = 120.0  # until a new process speaks: it imports everything, perhaps on a busy machine
STABLE_S = 60.0  # one that was ready for so long has not died of its start
# Before a worker is started again, by how often it has died soon after its start; the last one goes on.
PAUSES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
LEAST_HANG_S = 5.0  # --hang-timeout is meant for batches, and may be shorter than a busy machine needs
END_S = 10.0  # for a process that has closed its end of the line

ERRORS: dict[str, type[Exception]] = {"LoadError": LoadError, "SettingsError": SettingsError}


def supervise(settings: Settings, listener: socket.socket) -> None:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT; a second one ends it at once.

    Raises:
        SettingsError, LoadError: as a single process does.
    """
    with TemporaryDirectory(prefix="residuum-") as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # where the workers count
        supervisor = Supervisor(settings, listener, directory)
        asyncio.run(supervisor.run())
    if supervisor.failure:
        raise supervisor.failure
    if supervisor.exit_code:
        sys.exit(supervisor.exit_code)


class Worker:
    """One worker process, as its supervisor sees it."""

    def __init__(self, number: int, process: SpawnProcess) -> None:
        self.number = number
        self.process = process
        self.ready_at: float | None = None
        self.models = ""
        self.idle = False
        self.has_ended = False
        self.failure: Exception | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._unsaid = b""
        self._changes: dict[int, asyncio.Future[str | None]] = {}

    def __str__(self) -> str:
        return f"Worker {self.number} (pid {self.process.pid})"

    @property
    def was_stable(self) -> bool:
        return self.ready_at is not None and time.monotonic() - self.ready_at > STABLE_S

    @property
    def why_it_ended(self) -> str:
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return str(self.failure or f"process {self.process.pid} ended: {how}")

    async def connect(self, connection: socket.socket) -> asyncio.StreamReader:
        """What it says."""
        reader, self._writer = await asyncio.open_connection(sock=connection)
        self._writer.write(self._unsaid)
        return reader

    def say(self, kind: str, **members: Any) -> None:
        if self._writer is None:
            self._unsaid += line(kind, **members)
        else:
            self._writer.write(line(kind, **members))

    async def make(self, action: str, name: str, asked: int | None) -> str | None:
        """Why it cannot make this change, None where it has; raises ConnectionError once it has ended."""
        if self.has_ended:
            raise ConnectionError(f"{self} has ended")
        number = max(self._changes, default=0) + 1
        made: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._changes[number] = made
        self.say("change", id=number, action=action, name=name, asked=asked)
        return await made

    def made(self, number: int, why: str | None) -> None:
        self._changes.pop(number).set_result(why)

    def ended(self) -> None:
        self.has_ended = True
        if self._writer is not None:
            self._writer.close()
        for made in self._changes.values():
            made.set_exception(ConnectionError(f"{self} has ended"))


class Supervisor:
    """Keeps the workers running; in an event loop of its own, and never busy for long."""

    def __init__(self, settings: Settings, listener: socket.socket, directory: str) -> None:
        self.failure: Exception | None = None
        self.exit_code = 0
        self._settings = settings
        self._listener = listener
        self._url = url_of(listener)
        self._directory = directory
        self._workers: set[Worker] = set()  # those that live
        self._was_ready = False  # any of them, ever
        self._was_complete = False  # all of them, at once
        self._stopping = False
        self._changes: dict[str, str] = {}  # name -> action, the last one; what a new worker must make
        self._changing = asyncio.Lock()
        self._counts: Counts = SPAWN.RawArray(ctypes.c_int, [CLOSED] * settings.workers)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until told to stop, or until the first worker cannot load; `failure` says why."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        await asyncio.gather(*(self._keep(number + 1) for number in range(self._settings.workers)))

    # Their lives

    async def _keep(self, number: int) -> None:
        """One process after another, until told to stop."""
        deaths = 0
        while not self._stopping:
            await until(lambda: self._stopping or not self._workers or self._any_ready())
            if self._stopping:
                return
            try:
                worker = await self._run(number)
            except OSError as error:  # no memory, no process, no socket to be had
                if not self._was_ready:
                    raise
                why, was_stable = f"not started: {error}", False
            else:
                why, was_stable = worker.why_it_ended, worker.was_stable
            if not self._stopping:
                deaths = 1 if was_stable else deaths + 1
                pause_s = PAUSES_S[min(deaths, len(PAUSES_S)) - 1]
                logger.error("Worker %d: %s; the next one starts in %g s", number, why, pause_s)
                await until(lambda: self._stopping, time.monotonic() + pause_s)

    async def _run(self, number: int) -> Worker:
        """One process, until it has ended."""
        connection, theirs = socket.socketpair()
        with theirs:
            worker = Worker(number, self._start(number, theirs))
        self._workers.add(worker)
        await self._watch(worker, connection)
        self._bury(worker)
        return worker

    def _any_ready(self) -> bool:
        return any(worker.ready_at is not None for worker in self._workers)

    def _start(self, number: int, connection: socket.socket) -> SpawnProcess:
        changes = [(action, name) for name, action in self._changes.items()]
        process = SPAWN.Process(
            target=work,
            args=(
                self._settings,
                self._listener,
                connection,
                changes,
                self._counts,
                number - 1,
                self._any_ready(),
            ),
            daemon=True,  # is ended when this process ends without having told it to
        )
        # Ctrl-C goes to all processes of a terminal; only the supervisor takes it, and tells the others.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return process

    async def _watch(self, worker: Worker, connection: socket.socket) -> None:
        """Listen to a worker until it has ended; one that is silent for too long is killed.

        Turns of waiting are counted, not time: when the whole machine or container was paused, nobody hangs.
        """
        reader = await worker.connect(connection)
        silent_s, limit_s = 0.0, START_S
        while silent_s < limit_s:
            try:
                text = await asyncio.wait_for(reader.readline(), ALIVE_S)
            except TimeoutError:
                silent_s += ALIVE_S
                continue
            except ConnectionError:
                break
            if not text.endswith(b"\n"):  # it has ended, perhaps in the middle of a word
                break
            silent_s, limit_s = 0.0, max(self._settings.hang_timeout, LEAST_HANG_S)
            self._on_message(worker, json.loads(text))
        else:
            logger.error("%s hangs and is killed", worker)
            worker.process.kill()
        await asyncio.to_thread(worker.process.join, END_S)
        worker.process.kill()
        await asyncio.to_thread(worker.process.join)

    def _bury(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.ended()
        self._counts[worker.number - 1] = CLOSED
        mark_process_dead(worker.number, self._directory)  # type: ignore[no-untyped-call]
        if not self._stopping and not self._was_ready:
            self.failure = worker.failure or LoadError(f"while it was loading, {worker.why_it_ended}")
            self._stop()
        self._let_end()

    def _on_message(self, worker: Worker, message: dict[str, Any]) -> None:
        match message.pop("kind"):
            case "ready":
                worker.ready_at, worker.models = time.monotonic(), message["models"]
                self._was_ready = True
                self._announce(worker)
            case "failed":
                worker.failure = ERRORS[message["error"]](message["why"])
            case "submit":
                task = asyncio.create_task(self._change(worker, **message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case "changed":
                worker.made(message["id"], message["why"])
            case "idle":
                worker.idle = True
                self._let_end()

    def _announce(self, worker: Worker) -> None:
        if self._was_complete:
            logger.info("%s is ready", worker)
        elif sum(each.ready_at is not None for each in self._workers) == self._settings.workers:
            self._was_complete = True
            logger.info("Ready: %s, %d workers at %s", worker.models, self._settings.workers, self._url)

    # Their end

    def _on_signal(self, number: int) -> None:
        if self._stopping:
            self.exit_code = 128 + number
            self._kill()
        else:
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        self._listener.close()  # the workers have it, and the last one's end closes it
        for worker in self._workers:
            worker.process.terminate()
        in_time_s = max(self._settings.drain_timeout, SHORTEST_END_S)
        asyncio.get_running_loop().call_later(in_time_s, self._kill)

    def _let_end(self) -> None:
        """Let those end that may: all at once, as until then all refuse what is new; or one on its own."""
        if not self._stopping or all(worker.idle for worker in self._workers):
            for worker in self._workers:
                if worker.idle:
                    worker.say("close", alone=not self._stopping)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()

    # Their models

    async def _change(self, taker: Worker, *, id: int, action: str, name: str) -> None:
        """Have a change made by the worker that was asked for it, then by all others."""
        async with self._changing:
            try:
                if await taker.make(action, name, id) is not None:
                    return  # it has told its caller
            except ConnectionError:
                return
            self._changes.pop(name, None)  # the order is that of the last changes
            self._changes[name] = action
            others = [worker for worker in self._workers if worker is not taker]
            made = await asyncio.gather(
                *(worker.make(action, name, None) for worker in others), return_exceptions=True
            )
            problem = None
            for worker, why in zip(others, made, strict=True):
                if isinstance(why, str):  # not one that has ended: its successor makes the change
                    problem = problem or f"{worker} could not do it, and is replaced: {why}"
                    worker.process.terminate()
            taker.say("answer", id=id, why=problem)
