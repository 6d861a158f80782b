"""An answer to a client that is still sending.

A server that refuses a body and closes at once makes the client's kernel reset the connection, and the answer
may be lost with it. So the whole answer is sent first, then some of what still comes is read and thrown
away, and only then the connection closes (nginx calls this `lingering_close`).
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_S = 2.0
LINGER_BYTES = 64 * 2**20


class Lingering:
    """Lets an answer with `Connection: close` end when the body has, or LINGER_S or LINGER_BYTES later."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        closes = body_ended = False

        async def note_end() -> Message:
            nonlocal body_ended
            message = await receive()
            body_ended = body_ended or not message.get("more_body", False)
            return message

        async def linger(message: Message) -> None:
            nonlocal closes
            if message["type"] == "http.response.start":
                closes = Headers(raw=message["headers"]).get("connection") == "close"
            elif closes and not body_ended and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _drop_the_rest(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, note_end, linger)


async def _drop_the_rest(receive: Receive) -> None:
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
