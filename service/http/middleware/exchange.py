"""A request and its answer: what is known of both, and the messages that pass between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from service.http.body import HOLDING
from service.http.middleware.lingering_close import discard_body
from service.http.policy import CALL, Policy
from service.telemetry.stages import Stages, server_timing

if TYPE_CHECKING:
    from service.telemetry.opentelemetry import RequestSpan

EXCHANGE = "residuum.exchange"  # in a request's scope: the Exchange
CLOSE = (b"connection", b"close")

Headers = list[tuple[bytes, bytes]]


class Exchange:
    """A request, and what is known of its answer so far."""

    __slots__ = (
        "_added", "_body_ended", "_closes", "_is_draining", "_receive", "_send",
        "ids", "method", "num_bytes", "policy", "scope", "span", "started", "state", "status",
    )  # fmt: skip

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, added: Headers, is_draining: Callable[[], bool]
    ) -> None:
        self.started = time.perf_counter()
        self.scope = scope
        self.state: dict[str, object] = scope.setdefault("state", {})
        self.method: str = scope.get("requested_method", scope["method"])
        self.policy: Policy = scope[CALL].policy
        self.ids: dict[str, str] = {}
        self.span: RequestSpan | None = None
        self.status = 0  # 0: the answer has not begun
        self.num_bytes = 0
        self._added = added
        self._is_draining = is_draining
        self._receive = receive
        self._send = send
        self._body_ended = False
        self._closes = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_ended = self._body_ended or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if (holding := self.scope.get(HOLDING)) is not None:
                holding.release()  # whatever the client reads slowly, its images are gone
            message = {**message, "headers": self._headers(message)}
        elif message["type"] == "http.response.body":
            if self.method != "HEAD":
                self.num_bytes += len(message.get("body", b""))
            if self._closes and not self._body_ended and not message.get("more_body", False):
                await self._send({**message, "more_body": True})
                await discard_body(self.receive)
                message = {"type": "http.response.body"}
        await self._send(message)

    def _headers(self, message: Message) -> Headers:
        headers = [*message.get("headers", ()), *self._added]
        if self._is_draining():
            headers = [header for header in headers if header[0].lower() != b"connection"]
            headers.append(CLOSE)
        headers.append((b"x-request-id", self.ids["request_id"].encode()))
        stages = self.state.get("stages")
        if isinstance(stages, Stages):
            total_ms = (time.perf_counter() - self.started) * 1000
            headers.append((b"server-timing", server_timing(stages, total_ms).encode()))
        self._closes = CLOSE in headers
        return headers
