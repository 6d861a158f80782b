"""A worker's end of the messages: it reports to the supervisor, and all workers make the same changes.

messages.py lists the messages. This module knows nothing of HTTP servers and processes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any, Self

from artifact.errors import ResiduumError
from service.errors import LoadRefused, NotReady
from service.process.messages import ALIVE_S, MAX_WHY, BadMessage, frame, receive
from service.runtime.changes import Make
from service.runtime.wanted import Change, Wanted

logger = logging.getLogger("residuum")


class Fleet:
    """The other workers, as one worker sees them.

    Args:
        connection: the socket to the supervisor.
        wanted: see `service.runtime.changes.Fleet`.
    """

    def __init__(self, connection: socket.socket, wanted: Wanted | None) -> None:
        self._connection = connection
        self._wanted = wanted
        self._to_make: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._submitted: dict[int, asyncio.Future[None]] = {}
        self._num_submitted = 0
        self._may_end = asyncio.Event()
        self._alone = False
        self._writer: asyncio.StreamWriter
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    async def __aenter__(self) -> Self:
        reader, self._writer = await asyncio.open_connection(sock=self._connection)
        self._tasks = (asyncio.create_task(self._listen(reader)), asyncio.create_task(self._stay_alive()))
        return self

    async def __aexit__(self, *raised: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def say(self, kind: str, **members: Any) -> None:
        if not self._writer.is_closing():  # it is closing when the supervisor is dead
            self._writer.write(frame(kind, **members))

    @property
    def wanted(self) -> Wanted | None:
        return self._wanted

    async def submit(self, change: Change) -> None:
        """Have every worker make a change: this one first and, if it succeeds, all others.

        Raises:
            LoadRefused: another worker could not make the change; it is replaced by a worker that has.
            NotReady: the server is shutting down.
            Exception: this worker's own error; then no other worker has made the change.
        """
        self._num_submitted += 1
        number = self._num_submitted
        made = self._submitted[number] = asyncio.get_running_loop().create_future()
        self.say("submit", id=number, **change.members())
        try:
            await made
        finally:
            del self._submitted[number]

    def found(self, change: Change) -> None:
        self.say("found", **change.members())

    async def follow(self, make: Make) -> None:
        """Make every change that any worker submits, one after the other, until cancelled."""
        try:
            while True:
                await self._make(make, await self._to_make.get())
        finally:
            for number in self._submitted:
                self._settle(number, NotReady("The server is shutting down."))

    async def wait_until_all_idle(self) -> bool:
        """Report that no accepted request is left here, and wait until no worker has any.

        Returns:
            Whether only this worker ends.
        """
        self.say("idle")
        await self._may_end.wait()
        return self._alone

    async def _make(self, make: Make, message: dict[str, Any]) -> None:
        """Make a change, and report what was made or why it failed."""
        change = Change.from_members(message)
        why = None
        try:
            change = await make(change)
        except Exception as error:  # whatever it is, the next change must be made
            if message["asked"] is not None:
                self._settle(message["asked"], error)
            else:
                logger.exception("%s: failed", change)
            why = (error.detail if isinstance(error, ResiduumError) else repr(error))[:MAX_WHY]
        self.say("changed", id=message["id"], why=why, **change.members())

    def _settle(self, number: int, error: Exception | None) -> None:
        """Let `submit` return or raise, unless it has already, or its caller has left."""
        made = self._submitted.get(number)
        if made is None or made.done():
            return
        if error is None:
            made.set_result(None)
        else:
            made.set_exception(error)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while (message := await receive(reader)) is not None:
                match message["kind"]:
                    case "change":
                        self._to_make.put_nowait(message)
                    case "answer":
                        why = message["why"]
                        self._settle(message["id"], LoadRefused(why) if why else None)
                    case "close":
                        self._alone = message["alone"]
                        self._may_end.set()
        except (BadMessage, LookupError, TypeError) as error:
            logger.error("A message of the supervisor is bad: %r", error)
            self._writer.close()  # the supervisor replaces this worker
        self._may_end.set()  # the supervisor is dead

    async def _stay_alive(self) -> None:
        while True:
            self.say("alive")
            await asyncio.sleep(ALIVE_S)
