"""How several processes share the connections to one listening socket.

All wait for the same socket, and one alone may be the first each time: it would get all connections, and with
them, as these are kept, all requests. So each tells the others how many it has, and a connection is left to
those with the fewest, for PATIENCE_S. It knows nothing of HTTP and of what is done with a connection.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
from collections.abc import Callable

logger = logging.getLogger("residuum")

PATIENCE_S = 0.002  # one with fewer connections takes it at once, unless it is busy
ACCEPT_AGAIN_S = 1.0  # after a failure: too many open files
CLOSED = 2**30  # in place of a number of connections

Counts = ctypes.Array[ctypes.c_int]  # of the connections of each process, in memory that all share


class Entrance:
    """The way into one of the processes.

    Args:
        counts: CLOSED but for those that take connections.
        number: of this process in `counts`.
        num_connections: how many it has now.
        make_protocol: what a connection is given to.
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
        self._accepted: set[asyncio.Task[object]] = set()  # and not yet in num_connections
        self._is_open = False

    def open(self) -> None:
        self._listener.setblocking(False)
        self._is_open = True
        self._wait()

    def close(self) -> None:
        """Take no more connections; those that wait are for the others."""
        if self._is_open:
            self._is_open = False
            asyncio.get_running_loop().remove_reader(self._listener)
            self._counts[self._number] = CLOSED

    async def wait_closed(self) -> None:
        """As an asyncio.Server has it."""

    def count(self) -> None:
        """Tell the others; to be called now and then, as connections end unnoticed."""
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
        except (BlockingIOError, ConnectionAbortedError):  # another one has it, or its client has left
            return
        except OSError as error:
            logger.error("Cannot accept a connection: %s", error)
            self._pause(ACCEPT_AGAIN_S)
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._make_protocol, connection))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)
