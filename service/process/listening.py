"""The socket that a server listens on: bound before anything is loaded, closed without losing a client."""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from contextlib import suppress

from engines.settings import SettingsError
from service.settings import Settings

BACKLOG = 2048  # connections that may wait to be accepted; the kernel's own limit may be lower
SO_ATTACH_FILTER = 26  # of Linux's asm-generic/socket.h; Python has no name for it

# A classic BPF program, whose packets begin with the TCP header: drop those with SYN and without ACK.
DROP_SYN = (
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # if it is SYN alone
    (0x06, 0, 0, 0),  # drop the packet,
    (0x06, 0, 0, 0xFFFFFFFF),  # else take it, whole
)


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket. It is opened before the models are loaded: a taken port is known at once.

    Raises:
        SettingsError: the server cannot listen on that host and port.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        why = str(error.strerror or error).partition(" (")[0]
        raise SettingsError(
            f"--host {settings.host} --port {settings.port}: cannot listen there: {why}; "
            "choose another (--port 0: any free one)"
        ) from error


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def refuse_new_connections(listener: socket.socket) -> None:
    """Drop the first packet of every new connection; connections that wait can still be accepted.

    The kernel resets all connections in the queue of a listening socket when the socket is closed. Therefore
    new ones are dropped first, the queue is emptied, and then the socket is closed: the client of a dropped
    one sends its packet again, and is told that nothing listens. On systems without such a filter, a client
    that connects at that moment gets a reset.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in DROP_SYN))
    with suppress(OSError):
        described = struct.pack("@HP", len(DROP_SYN), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)
