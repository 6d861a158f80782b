"""What the workers of one server have in common: the changes to their models, and a line to their supervisor.

Lines of JSON, each with a `kind`, over a socket that the supervisor (workers.py) gave to the worker:

    worker -> supervisor                    supervisor -> worker
    alive    every ALIVE_S
    ready    models: what they are
    failed   error, why: it must end
    submit   id, action, name               change   id, action, name, asked: id of your submit, or null
    changed  id, why: null where it went well
                                            answer   id, why: of submit; null where all have made it
    idle     nothing accepted is left       close    alone: whether the others go on

This module knows nothing of HTTP servers and processes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

from artifact.errors import ResiduumError
from service.errors import LoadRefused, NotReady
from service.runtime.changes import Action, Apply

logger = logging.getLogger("residuum")

ALIVE_S = 1.0


def line(kind: str, **members: Any) -> bytes:
    """A message as it is sent."""
    return json.dumps({"kind": kind, **members}).encode() + b"\n"


class Fleet:
    """A worker's end of the line.

    Args:
        connection: to the supervisor.
        changes: action and name of those that were made before this worker was started.
    """

    def __init__(self, connection: socket.socket, changes: Sequence[tuple[Action, str]]) -> None:
        self._connection = connection
        self._before = changes
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
        if not self._writer.is_closing():  # as it is when the supervisor is dead
            self._writer.write(line(kind, **members))

    async def submit(self, action: Action, name: str) -> None:
        """Have every worker make a change: this one, and when that went well, all others.

        Raises:
            LoadRefused: another worker could not make it; it is replaced by one that has.
            NotReady: the server is shutting down.
            Exception: what making it here has raised; then nobody else has made it.
        """
        self._num_submitted += 1
        number = self._num_submitted
        made = self._submitted[number] = asyncio.get_running_loop().create_future()
        self.say("submit", id=number, action=action, name=name)
        try:
            await made
        finally:
            del self._submitted[number]

    async def catch_up(self, apply: Apply) -> None:
        """Make the changes that were made before this worker was started; raises as `apply`."""
        for action, name in self._before:
            await apply(action, name)

    async def follow(self, apply: Apply) -> None:
        """Make every change that is submitted anywhere, one after the other, until cancelled."""
        try:
            while True:
                change = await self._to_make.get()
                self.say("changed", id=change["id"], why=await self._make(apply, change))
        finally:
            for number in self._submitted:
                self._settle(number, NotReady("The server is shutting down."))

    async def wait_until_all_idle(self) -> bool:
        """Say that no accepted request is left here, and wait until that is so everywhere.

        Returns:
            Whether only this worker ends.
        """
        self.say("idle")
        await self._may_end.wait()
        return self._alone

    async def _make(self, apply: Apply, change: dict[str, Any]) -> str | None:
        """Why it cannot be made, None where it is."""
        try:
            await apply(change["action"], change["name"])
        except Exception as error:  # whatever it was, the next change must be followed
            if change["asked"] is not None:
                self._settle(change["asked"], error)
            else:
                logger.exception("%s %s failed", change["action"], change["name"])
            return error.detail if isinstance(error, ResiduumError) else repr(error)
        return None

    def _settle(self, number: int, error: Exception | None) -> None:
        """Let `submit` return or raise, unless it has, or its caller has gone."""
        made = self._submitted.get(number)
        if made is None or made.done():
            return
        if error is None:
            made.set_result(None)
        else:
            made.set_exception(error)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while (text := await reader.readline()).endswith(b"\n"):
                message = json.loads(text)
                if message["kind"] == "change":
                    self._to_make.put_nowait(message)
                elif message["kind"] == "answer":
                    self._settle(message["id"], LoadRefused(message["why"]) if message["why"] else None)
                elif message["kind"] == "close":
                    self._alone = message["alone"]
                    self._may_end.set()
        except ConnectionError:
            pass
        self._may_end.set()  # the supervisor is dead

    async def _stay_alive(self) -> None:
        while True:
            self.say("alive")
            await asyncio.sleep(ALIVE_S)
