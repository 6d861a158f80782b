"""What a request meets once the server has been told to stop.

Those that were accepted before are finished. New ones are refused, but answered, and every answer says that
the connection closes. It knows nothing of signals and sockets: running.py counts on it, and waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotReady
from service.http.middleware.access import is_open
from service.runtime.lifecycle import Serving


@dataclass
class Accepted:
    """The requests that are being answered and were not refused."""

    num_requests: int = 0


class Draining:
    """503 for whatever comes while the server drains, but for what is open to anybody (health checks)."""

    def __init__(self, app: ASGIApp, serving: Serving, accepted: Accepted) -> None:
        self.app = app
        self._serving = serving
        self._accepted = accepted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._serving.state == "draining" and not is_open(scope["method"], scope["path"]):
            problem = NotReady("The server is shutting down.")
            await problem.answer(scope, receive, send)
            return
        self._accepted.num_requests += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._accepted.num_requests -= 1


class Closing:
    """Every answer that is given while the server drains says that the connection closes."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._serving.state == "draining":
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self.app(scope, receive, and_close)
