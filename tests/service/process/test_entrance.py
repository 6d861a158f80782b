"""Connections to one socket, shared by several that listen; and a socket that is closed without loss."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import sys
from collections.abc import Iterator
from threading import Timer

import pytest

from service.process.entrance import CLOSED, Entrance
from service.process.listening import refuse_new_connections


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


class Taken(asyncio.Protocol):
    """A connection that is noted in `by`, and answered with its number."""

    def __init__(self, by: list[asyncio.BaseTransport], number: int) -> None:
        self._by = by
        self._number = number

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._by.append(transport)
        transport.write(bytes([self._number]))


async def share(listener: socket.socket, taken: list[list[asyncio.BaseTransport]], steps: str) -> str:
    """Connect and do what `steps` say: `.` connects, a digit closes that entrance; who took each."""
    counts = (ctypes.c_int * len(taken))(*[CLOSED] * len(taken))
    listeners = [listener.dup() for _ in taken]  # an event loop takes a descriptor only once

    def entrance(number: int) -> Entrance:
        by = taken[number]
        return Entrance(listeners[number], counts, number, lambda: len(by), lambda: Taken(by, number))

    entrances = [entrance(number) for number in range(len(taken))]
    for each in entrances:
        each.open()
    who = ""
    clients = []
    for step in steps:
        if step == ".":
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            who += str((await reader.readexactly(1))[0])
            clients.append((reader, writer))
        else:
            entrances[int(step)].close()
    for each, listening in zip(entrances, listeners, strict=True):
        each.close()
        listening.close()
    for transport in [transport for by in taken for transport in by]:
        transport.close()
    for reader, writer in clients:
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
    return who


def test_who_has_the_fewest_takes_the_next(listener: socket.socket) -> None:
    who = asyncio.run(share(listener, [[], [], []], "." * 12))
    assert sorted(who) == sorted("012" * 4)


def test_one_that_is_closed_leaves_all_to_the_others(listener: socket.socket) -> None:
    assert set(asyncio.run(share(listener, [[], []], "....0......"))[4:]) == {"1"}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no such filter")
def test_nobody_comes_in_any_more_but_who_is_in_the_queue_is_served(listener: socket.socket) -> None:
    address = listener.getsockname()
    with socket.create_connection(address, timeout=60) as queued:
        refuse_new_connections(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.1)  # long for this machine's own network
        accepted, _ = listener.accept()
        with accepted:
            queued.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
    Timer(0.1, listener.close).start()  # before the client tries again, after a second
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)
