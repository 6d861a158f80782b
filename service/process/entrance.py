"""How several processes share the connections to one listening socket.

All processes wait for the same socket, and the same process may be the first each time: it would get all
connections and, since clients keep them, all requests. Therefore each process tells the others how many
connections it has, and for PATIENCE_S a new connection is left to those with the fewest. This module knows no
HTTP, and not what is done with a connection.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
from collections.abc import Callable

from service.process.descriptors import EXHAUSTED

logger = logging.getLogger("residuum")

PATIENCE_S = 0.002  # a process with fewer connections takes a new one at once, unless it is busy
ACCEPT_AGAIN_S = 1.0  # pause after a failure, such as too many open files
CLOSED = 2**30  # count of a process that takes no connections

Counts = ctypes.Array[ctypes.c_int]  # each process's number of connections, in shared memory


class Entrance:
    """Accepts connections for one of the processes.

    Args:
        counts: the number of connections of each process, or CLOSED.
        number: the index of this process in `counts`.
        num_connections: returns how many connections this process has now.
        make_protocol: makes what handles a connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        counts: Counts,
        number: int,
        num_connections: Callable[[], int],
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self._listener = listener
        self._counts = counts
        self._number = number
        self._num_connections = num_connections
        self._make_protocol = make_protocol
        self._accepted: set[asyncio.Task[object]] = set()  # not yet in num_connections
        self._is_open = False

    def open(self) -> None:
        self._listener.setblocking(False)
        self._is_open = True
        self._wait()

    def close(self) -> None:
        """Take no more connections; the others take those that wait."""
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().remove_reader(self._listener)
            self._counts[self._number] = CLOSED

    async def wait_closed(self) -> None:
        """Do nothing; asyncio.Server has such a method, and uvicorn calls it."""

    def count(self) -> None:
        """Tell the others how many connections there are; called regularly, as connections end unnoticed."""
        if self._is_open:
            self._counts[self._number] = self._num_connections() + len(self._accepted)

    def _wait(self) -> None:
        if self._is_open:
            self.count()
            asyncio.get_running_loop().add_reader(self._listener, self._on_connection)

    def _on_connection(self) -> None:
        self.count()
        if self._counts[self._number] <= min(self._counts):
            self._accept()
        else:
            self._pause(PATIENCE_S)

    def _pause(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener)
        loop.call_later(seconds, self._after_pause)

    def _after_pause(self) -> None:
        if self._is_open:
            self._wait()
            self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another process took it, or its client left
            return
        except OSError as error:
            if error.errno not in EXHAUSTED:  # of which descriptors.py tells
                logger.error("Cannot accept a connection: %s", error)
            self._pause(ACCEPT_AGAIN_S)
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._make_protocol, connection))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)
