"""Closing a connection whose client is still sending (nginx calls this `lingering_close`).

If a server refuses a body and closes at once, the client's kernel resets the connection, and the answer may
be lost. So the whole answer is sent first, then the rest of the body is read and discarded for a while, and
only then does the connection close.
"""

from __future__ import annotations

import asyncio

from starlette.types import Receive

LINGER_S = 2.0
LINGER_BYTES = 64 * 2**20


async def discard_body(receive: Receive) -> None:
    """Read the rest of a body and drop it, for LINGER_S or LINGER_BYTES at most."""
    dropped = 0
    try:
        async with asyncio.timeout(LINGER_S):
            while dropped < LINGER_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if not message.get("more_body", False):  # its end, or the client has left
                    return
    except (TimeoutError, asyncio.CancelledError):  # or the server ends, and waits no longer
        return
