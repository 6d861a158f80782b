"""GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from service.http.policy import WATCHED, follows
from service.http.waiting import serving_of
from service.telemetry.metrics import OPENMETRICS

router = APIRouter(tags=["metrics"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"content": {OPENMETRICS: {}}}},
)
@follows(WATCHED)
def metrics(request: Request) -> Response:
    """Return the Prometheus text format, or OpenMetrics if Accept asks for it."""
    # Not async, so that it runs in a thread: reading the files of many workers takes milliseconds.
    body, content_type = serving_of(request).metrics.render(request.headers.get("accept", ""))
    return Response(body, media_type=content_type)
