"""Each request's id and trace context, access log line, metrics and span.

This is one class, because the four share what they read and run on the cores that inference needs. They read
the scope: the framework puts `route` there, a route puts `model` (its name) and `stages`
(telemetry/stages.py) into `request.state`, and whoever refuses a request puts `problem` (its code) there. So
no middleware after this one may copy the scope.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.policy import policy_of
from service.telemetry.logs import request_ids
from service.telemetry.metrics import UNMATCHED, Metrics
from service.telemetry.stages import Stages, server_timing

if TYPE_CHECKING:
    from service.telemetry.opentelemetry import RequestSpan, Tracer


logger = logging.getLogger("residuum.access")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
REFUSALS = (429, 503)
MAX_LOGGED_PATH = 512


class RequestLog:
    """Read or make `X-Request-Id`, answer with it, and report the request to log, metrics and tracer."""

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool, tracer: Tracer | None) -> None:
        self.app = app
        self._metrics = metrics
        self._access_log = access_log
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, send, self._tracer)
        token = request_ids.set(exchange.ids)
        try:
            await self.app(scope, receive, exchange.send)
        finally:
            self._finish(exchange)
            request_ids.reset(token)

    def _finish(self, exchange: _Exchange) -> None:
        ended = time.perf_counter()
        route, state = _route(exchange.scope), exchange.state
        status = exchange.status or 500  # 500: the request ended before its answer began
        model: str = state.get("model", "")
        problem: str = state.get("problem", "")
        self._metrics.request(route, model, status, ended - exchange.started)
        if problem and status in REFUSALS:
            self._metrics.refused(problem)
        if exchange.span is not None:
            stages: Stages | None = state.get("stages")
            exchange.span.end(
                route=route, model=model, status=status, problem=problem, stages=stages, ended=ended
            )
        if self._access_log and (status >= 400 or policy_of(exchange.scope).logged):
            exchange.log(route, model, status, problem, ended)


class _Exchange:
    """A request, and what is known of its answer so far."""

    __slots__ = ("_send", "ids", "method", "num_bytes", "scope", "span", "started", "state", "status")

    def __init__(self, scope: Scope, send: Send, tracer: Tracer | None) -> None:
        self.started = time.perf_counter()
        self.scope = scope
        self.state = scope.setdefault("state", {})
        self.method: str = scope.get("requested_method", scope["method"])
        self.status = 0
        self.num_bytes = 0
        self.span: RequestSpan | None = None
        self._send = send
        self.ids = self._read_ids()
        if tracer is not None:
            self.span = tracer.start(self.method, scope["path"], scope["headers"], self.started)
            self.ids |= {"trace_id": self.span.trace_id, "span_id": self.span.span_id}

    def _read_ids(self) -> dict[str, str]:
        ids = {}
        for name, value in self.scope["headers"]:
            if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
                ids["request_id"] = value.decode()
            elif name == b"traceparent":
                ids |= parse_traceparent(value)
        ids.setdefault("request_id", secrets.token_hex(16))
        return ids

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.ids["request_id"].encode())]
            if (stages := self.state.get("stages")) is not None:
                total_ms = (time.perf_counter() - self.started) * 1000
                headers.append((b"server-timing", server_timing(stages, total_ms).encode()))
            message["headers"] = headers
        elif message["type"] == "http.response.body" and self.method != "HEAD":
            self.num_bytes += len(message.get("body", b""))
        await self._send(message)

    def log(self, route: str, model: str, status: int, problem: str, ended: float) -> None:
        """Write the access log line. The path stays escaped as it was sent, so that it forges no line."""
        path = self.scope["raw_path"][:MAX_LOGGED_PATH].decode("latin-1")
        duration_ms = round((ended - self.started) * 1000, 3)
        fields = {
            "method": self.method,
            "path": path,
            "route": route,
            "status": status,
            "duration_ms": duration_ms,
            "bytes": self.num_bytes,
        }
        if client := self.scope.get("client"):
            fields["client"] = client[0]
        if model:
            fields["model"] = model
        if problem:
            fields["problem"] = problem
        # Unlike logger.info(), this does not look up the calling line of code, a fifth of a log line's cost.
        message = "%s %s %d %.1f ms %d bytes"
        values = (self.method, path, status, duration_ms, self.num_bytes)
        record = logger.makeRecord(
            logger.name, logging.INFO, "", 0, message, values, None, extra={"fields": fields}
        )
        logger.handle(record)


def parse_traceparent(value: bytes) -> dict[str, str]:
    """Return the trace_id and span_id of the caller's span (W3C trace context), {} for an invalid header.

    https://www.w3.org/TR/trace-context/#traceparent-header
    """
    match = TRACEPARENT.fullmatch(value)
    if match is None:
        return {}
    version, trace_id, span_id, more = match.groups()
    if version == b"ff" or (version == b"00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return {}
    return {"trace_id": trace_id.decode(), "span_id": span_id.decode()}


def _route(scope: Scope) -> str:
    """Return the template of the route that answered, so that metrics have one label value a route."""
    if route := scope.get("route"):
        path: str = route.path
        return path
    if "endpoint" not in scope:
        return UNMATCHED
    above: str = scope.get("app_root_path", scope["root_path"])
    if scope["root_path"] != above:  # mounted: static files
        return str(scope["root_path"][len(above) :]) + "/*"
    return UNMATCHED if scope["path_params"] else str(scope["path"])
