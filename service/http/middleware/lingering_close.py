"""Closing a connection whose client is still sending (nginx calls this `lingering_close`).

If a server refuses a body and closes at once, the client's kernel resets the connection, and the answer may
be lost. So the whole answer is sent first, then the rest of the body is read and discarded for a while, and
only then does the connection close.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINGER_S = 2.0
LINGER_BYTES = 64 * 2**20


class LingeringClose:
    """Hold back the end of an answer with `Connection: close` until the request's body has ended.

    It waits for LINGER_S or LINGER_BYTES at most.
    """

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
                await _discard_body(receive)
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, note_end, linger)


async def _discard_body(receive: Receive) -> None:
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
