"""One worker process as its supervisor sees it: the supervisor's end of the messages."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from enum import Enum
from multiprocessing.context import SpawnProcess
from typing import Any

from service.process.messages import frame
from service.runtime.wanted import Change

STABLE_S = 60.0  # the death of a worker that was ready for longer is not blamed on its start


class CannotChange(Exception):
    """A worker cannot make a change; the message says why."""


class Life(Enum):
    """The life of a worker; the states follow in this order, and any may be left out."""

    STARTING = "it starts and loads its models"
    READY = "it answers requests"
    IDLE = "it was told to stop, and has answered every accepted request"
    ENDED = "its process has ended"


class Member:
    """One worker process: its life, and the messages that it is sent."""

    def __init__(self, number: int, process: SpawnProcess) -> None:
        self.number = number
        self.process = process
        self.life = Life.STARTING
        self.models = ""  # a description, once it is ready
        self.failure: Exception | None = None
        self._ready_at: float | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.was_heard = False  # since the supervisor has looked
        self._unsent = b""
        self._changes: dict[int, asyncio.Future[Change]] = {}
        self._num_changes = 0

    def __str__(self) -> str:
        return f"Worker {self.number} (pid {self.process.pid})"

    @property
    def was_ready(self) -> bool:
        return self._ready_at is not None

    @property
    def was_stable(self) -> bool:
        return self._ready_at is not None and time.monotonic() - self._ready_at > STABLE_S

    @property
    def why_it_ended(self) -> str:
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return str(self.failure or f"process {self.process.pid} ended: {how}")

    async def connect(self, connection: socket.socket) -> asyncio.StreamReader:
        """Send what was said before, and return a reader of the worker's messages."""
        reader, self._writer = await asyncio.open_connection(sock=connection)
        self._writer.write(self._unsent)
        return reader

    def say(self, kind: str, **members: Any) -> None:
        if self._writer is None:
            self._unsent += frame(kind, **members)
        else:
            self._writer.write(frame(kind, **members))

    def mark_ready(self, models: str) -> None:
        self.life, self.models, self._ready_at = Life.READY, models, time.monotonic()

    async def make(self, change: Change, asked: int | None) -> Change:
        """Have the worker make a change; return the change that was made.

        Args:
            asked: the id with which the worker has submitted the change; None: another worker has.

        Raises:
            CannotChange: the worker cannot.
            ConnectionError: the worker has ended.
        """
        if self.life is Life.ENDED:
            raise ConnectionError(f"{self} has ended")
        self._num_changes += 1
        made: asyncio.Future[Change] = asyncio.get_running_loop().create_future()
        self._changes[self._num_changes] = made
        self.say("change", id=self._num_changes, asked=asked, **change.members())
        return await made

    def mark_made(self, number: int, change: Change, why: str | None) -> None:
        made = self._changes.pop(number)
        if why is None:
            made.set_result(change)
        else:
            made.set_exception(CannotChange(why))

    def mark_ended(self) -> None:
        self.life = Life.ENDED
        if self._writer is not None:
            self._writer.close()
        for made in self._changes.values():
            made.set_exception(ConnectionError(f"{self} has ended"))
