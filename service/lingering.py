"""A response to a client that is still sending.

A server that answers 413 and closes at once makes the client's kernel reset the connection, and the answer
may be lost with it. So the whole answer is sent first, then some of what still comes is read and thrown
away, and only then the connection closes (nginx calls this `lingering_close`).
"""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

LINGER_S = 2.0
LINGER_BYTES = 64 * 2**20


class LingeringResponse(JSONResponse):
    """JSON with `Connection: close`, after which at most LINGER_BYTES and LINGER_S are read and dropped."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["Connection"] = "close"

        async def keep_open(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "more_body": True}
            await send(message)

        await super().__call__(scope, receive, keep_open)
        await _drop_the_rest(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop_the_rest(receive: Receive) -> None:
    dropped = 0
    try:
        async with asyncio.timeout(LINGER_S):
            while dropped < LINGER_BYTES:
                message = await receive()
                dropped += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
