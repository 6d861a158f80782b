"""Each request's id and trace context, access log line, metrics and span.

They read the scope: the framework puts `route` there, a route puts `model` (its name) and `stages`
(telemetry/stages.py) into `request.state`, and whoever refuses a request puts `problem` (its code) there. So
no middleware after this one may copy the scope.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.types import Scope

from service.http.middleware.exchange import Exchange
from service.telemetry.metrics import UNMATCHED, Metrics
from service.telemetry.stages import Stages

if TYPE_CHECKING:
    from service.telemetry.opentelemetry import Tracer

logger = logging.getLogger("residuum.access")

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
REFUSALS = (429, 503)
MAX_LOGGED_PATH = 512


class RequestLog:
    """Read or make a request's ids, and report the request to log, metrics and tracer."""

    def __init__(self, metrics: Metrics, access_log: bool, tracer: Tracer | None) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self._tracer = tracer

    def begin(self, exchange: Exchange) -> None:
        """Give the exchange its ids, and its span if requests are traced."""
        scope = exchange.scope
        exchange.ids = read_ids(scope["headers"])
        if self._tracer is not None:
            span = self._tracer.start(exchange.method, scope["path"], scope["headers"], exchange.started)
            exchange.span = span
            exchange.ids |= {"trace_id": span.trace_id, "span_id": span.span_id}

    def finish(self, exchange: Exchange) -> None:
        """Report the exchange, which has ended."""
        ended = time.perf_counter()
        route, state = _route(exchange.scope), exchange.scope["state"]
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
        if self._access_log and (status >= 400 or exchange.policy.logged):
            self._log(exchange, route, model, status, problem, ended)

    def _log(
        self, exchange: Exchange, route: str, model: str, status: int, problem: str, ended: float
    ) -> None:
        """Write the access log line. The path stays escaped as it was sent, so that it forges no line."""
        path = exchange.scope["raw_path"][:MAX_LOGGED_PATH].decode("latin-1")
        duration_ms = round((ended - exchange.started) * 1000, 3)
        fields = {
            "method": exchange.method,
            "path": path,
            "route": route,
            "status": status,
            "duration_ms": duration_ms,
            "bytes": exchange.num_bytes,
        }
        if client := exchange.scope.get("client"):
            fields["client"] = client[0]
        if model:
            fields["model"] = model
        if problem:
            fields["problem"] = problem
        # Unlike logger.info(), this does not look up the calling line of code, a fifth of a log line's cost.
        message = "%s %s %d %.1f ms %d bytes"
        values = (exchange.method, path, status, duration_ms, exchange.num_bytes)
        record = logger.makeRecord(
            logger.name, logging.INFO, "", 0, message, values, None, extra={"fields": fields}
        )
        logger.handle(record)


def read_ids(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the ids that a request came with; a `request_id` is made if it has none."""
    ids = {}
    for name, value in headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            ids["request_id"] = value.decode()
        elif name == b"traceparent":
            ids |= parse_traceparent(value)
    if "request_id" not in ids:
        ids["request_id"] = secrets.token_hex(16)
    return ids


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
