"""Clients for servers that end: in closed loops, which count what they are answered, and slower ones."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle

import httpx
from PIL import Image

from tests.support.images import encode, photograph
from tests.support.live import LiveServer

NUM_KEPT = 8  # clients that keep their connection
NUM_NEW = 4  # clients that make one for each request

# JPEGs as people send them, and files too large for a socket's buffers: an answer may come before their end.
IMAGES = [encode(photograph(500, 375, seed), "JPEG") for seed in range(4)]
IMAGES += [encode(Image.effect_noise((1200, 900), 100), "BMP") for _ in range(2)]


class Load:
    """What became of every request, until nobody listens any more."""

    def __init__(self, server: LiveServer) -> None:
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []  # sent, and without a whole answer
        self.not_closing: list[str] = []  # refused, without `Connection: close`
        self._port = server.port
        self._changed = threading.Condition()

    def wait_for(self, num_answers: int) -> None:
        """Until so many more requests were answered with 200."""
        with self._changed:
            enough = self.statuses[200] + num_answers
            assert self._changed.wait_for(lambda: self.statuses[200] >= enough, timeout=60)

    def ask_on(self, first: int, keep: bool) -> None:
        """One request after another, each on the same connection or on one of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        for data in cycle(IMAGES[first:] + IMAGES[:first]):
            if connection.sock is None:
                try:
                    connection.connect()
                except ConnectionRefusedError:
                    return
            self._ask(connection, data)
            if not keep:
                connection.close()

    def _ask(self, connection: http.client.HTTPConnection, data: bytes) -> None:
        try:
            connection.request("POST", "/classify", data, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            with self._changed:
                self.lost.append(repr(error))
            return
        with self._changed:
            self.statuses[answer.status] += 1
            self._changed.notify_all()
            if (b'"results"' if answer.status == 200 else b'"code"') not in body:
                self.lost.append(f"{answer.status} {body!r}")
            if answer.status != 200 and answer.headers["Connection"] != "close":
                self.not_closing.append(f"{answer.headers} {body!r}")


@contextmanager
def under_load(server: LiveServer, num_kept: int = NUM_KEPT, num_new: int = NUM_NEW) -> Iterator[Load]:
    """Clients that ask until the server is gone, which the block must bring about."""
    load = Load(server)
    with ThreadPoolExecutor(num_kept + num_new) as clients:
        loops = [
            clients.submit(load.ask_on, number % len(IMAGES), number < num_kept)
            for number in range(num_kept + num_new)
        ]
        load.wait_for(3 * (num_kept + num_new))
        try:
            yield load
        finally:
            server.process.kill()  # the clients would go on for ever
        for loop in loops:
            loop.result(timeout=60)


def head(num_bytes: int) -> bytes:
    return f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n\r\n".encode()


def answer_on(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def begin_a_request(server: LiveServer, sent: bytes) -> socket.socket:
    """A connection on which the server has begun to read `sent`."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall(sent)
    httpx.get(f"{server.url}/health/live")
    return connection


def wait_until_draining(server: LiveServer) -> None:
    while httpx.get(f"{server.url}/health/ready").status_code == 200:
        pass
