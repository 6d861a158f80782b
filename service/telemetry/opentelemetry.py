"""Spans of requests, sent to a collector over OTLP/HTTP: the only module that imports OpenTelemetry.

A thread sends spans in batches. While it cannot reach the collector, spans wait in a bounded queue; further
ones are lost, and the log says so once a minute. OpenTelemetry's own variables (OTEL_SERVICE_NAME,
OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_*) work as it documents them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from threading import Thread

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace import Tracer as OpenTelemetryTracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.telemetry.stages import Stages

logger = logging.getLogger("residuum.tracing")

WARN_EVERY_S = 60
FLUSH_S = 2.0  # how long sending the last spans may take


class Tracer:
    """Makes a span of each request and sends it to the collector at `endpoint`, an OTLP/HTTP base address."""

    def __init__(self, endpoint: str) -> None:
        _log_rarely()
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "residuum"}))
        self._exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces")
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("residuum")
        self._propagator = TraceContextTextMapPropagator()

    def start(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]], started: float
    ) -> RequestSpan:
        """Start a span, in the trace that `traceparent` names; `started` is a time of `perf_counter`."""
        start_ns = time.time_ns()
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        span = self._tracer.start_span(
            method,  # until the route is known
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": method, "url.path": path},
            start_time=start_ns,
        )
        return RequestSpan(self._tracer, span, method, started, start_ns)

    def close(self) -> None:
        """Send the spans that are left, within FLUSH_S."""
        closing = Thread(target=self._provider.shutdown, name="tracing-flush", daemon=True)
        closing.start()
        closing.join(FLUSH_S)
        if closing.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # wakes it from its retries
            logger.warning("The last traces could not be sent within %g s.", FLUSH_S)


class RequestSpan:
    """The span of one request. Wall-clock time is read once; later moments are counted from it."""

    def __init__(
        self, tracer: OpenTelemetryTracer, span: Span, method: str, started: float, start_ns: int
    ) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        self._started = started
        self._start_ns = start_ns
        context = span.get_span_context()
        self.trace_id = f"{context.trace_id:032x}"
        self.span_id = f"{context.span_id:016x}"

    def end(
        self, *, route: str, model: str, status: int, problem: str, stages: Stages | None, ended: float
    ) -> None:
        """End the span of an answered request; `ended` is a time of `perf_counter`."""
        if self._span.is_recording():
            self._span.update_name(f"{self._method} {route}")
            self._span.set_attributes({"http.route": route, "http.response.status_code": status})
            if model:
                self._span.set_attribute("residuum.model", model)
            if status >= 400:
                self._span.set_attribute("error.type", problem or str(status))
            if status >= 500:
                self._span.set_status(StatusCode.ERROR)
            if stages is not None:
                self._add(stages)
        self._span.end(self._at(ended))

    def _add(self, stages: Stages) -> None:
        """Add a child span for each stage, backwards from the end of the last one."""
        if stages.batch_size is not None:
            self._span.set_attribute("residuum.batch_size", stages.batch_size)
        context = set_span_in_context(self._span)
        end = stages.ended
        for name, ms in (
            ("inference", stages.inference_ms),
            ("queue", stages.queue_ms),
            ("decode", stages.decode_ms),
        ):
            start = end - ms / 1000
            child = self._tracer.start_span(name, context, start_time=self._at(start))
            child.end(self._at(end))
            end = start

    def _at(self, moment: float) -> int:
        return self._start_ns + round((moment - self._started) * 1e9)


class _RareWarnings(logging.Handler):
    """A log handler that passes on one warning a minute: OpenTelemetry logs one for every batch of spans."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + WARN_EVERY_S
            logger.warning("OpenTelemetry: %s (more of this is not logged for a while)", record.getMessage())


def _log_rarely() -> None:
    theirs = logging.getLogger("opentelemetry")
    theirs.propagate = False
    if not any(isinstance(handler, _RareWarnings) for handler in theirs.handlers):
        theirs.addHandler(_RareWarnings())
