"""The one step that sees every message of a request and its answer.

Each concern is a module beside this one: ids, log, metrics and spans (request_log.py), security headers
(security.py), the close of a connection (draining.py, lingering_close.py). They share this step, because a
step of its own would cost each of them a call for every message, on the cores that inference needs. HEAD is
passed on as GET; uvicorn leaves the body of the answer out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.middleware.exchange import EXCHANGE, Exchange, Headers
from service.http.middleware.request_log import RequestLog
from service.http.policy import CALL, RouteTable
from service.telemetry.logs import request_ids


class Exchanges:
    """Find the request's policy, give the request its ids, complete the answer's headers, and log both.

    Args:
        headers: what every answer gets, by the policy's `browser`.
        is_draining: whether every answer closes its connection.
    """

    def __init__(
        self,
        app: ASGIApp,
        table: RouteTable,
        log: RequestLog,
        headers: Mapping[str, Headers],
        is_draining: Callable[[], bool],
    ) -> None:
        self.app = app
        self._table = table
        self._log = log
        self._headers = headers
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET", "requested_method": "HEAD"}
        call = scope[CALL] = self._table.find(scope["method"], scope["path"])
        added = self._headers[call.policy.browser]
        exchange = scope[EXCHANGE] = Exchange(scope, receive, send, added, self._is_draining)
        self._log.begin(exchange)
        token = request_ids.set(exchange.ids)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            self._log.finish(exchange)
            del scope[EXCHANGE]  # a cycle, which only the garbage collector would find
            request_ids.reset(token)
