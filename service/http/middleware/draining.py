"""Requests while the server drains, that is, after it has been told to stop.

Requests that were accepted before are finished. New ones are answered with 503, and every answer closes its
connection. This module knows nothing of signals and sockets: `process/server.py` waits until `Accepted` is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotReady
from service.http.policy import policy_of
from service.http.problems import refuse
from service.runtime.lifecycle import Serving


@dataclass
class Accepted:
    """Number of requests that were not refused and are being answered."""

    num_requests: int = 0


class RefuseWhileDraining:
    """Answer 503 while the server drains, except to calls that are open to anybody (health checks)."""

    def __init__(self, app: ASGIApp, serving: Serving, accepted: Accepted) -> None:
        self.app = app
        self._serving = serving
        self._accepted = accepted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._serving.is_draining and policy_of(scope).access != "open":
            await refuse(NotReady("The server is shutting down."), scope, receive, send)
            return
        self._accepted.num_requests += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._accepted.num_requests -= 1


class CloseWhileDraining:
    """Add `Connection: close` to every answer while the server drains."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._serving.is_draining:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, and_close)
