"""GET /health/live and /health/ready, for orchestrators and load balancers."""

from __future__ import annotations

from fastapi import APIRouter, Request

from service.errors import NotReady
from service.http.policy import WATCHED, follows
from service.http.problems import problem_responses
from service.http.schemas import Status
from service.http.waiting import serving_of

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", summary="Tell whether the process answers", response_model_exclude_defaults=True)
@follows(WATCHED)
async def live() -> Status:
    return Status(status="live")


@router.get(
    "/ready",
    summary="Tell whether the server is ready",
    response_model_exclude_defaults=True,
    responses=problem_responses(NotReady),
)
@follows(WATCHED)
async def ready(request: Request) -> Status:
    """Ready: the models are loaded and warmed, their golden checks pass, and the server is not draining."""
    serving = serving_of(request)
    if serving.state != "ready":
        # Name the graphs only: anybody may call this, and a reason, which is in the log, may quote an engine.
        problems = [*serving.broken, *(f"{name} is missing" for name in serving.models.missing)]
        why = ": " + ", ".join(problems) if problems else ""
        raise NotReady(f"The server is {serving.state}{why}.")
    return Status(status="ready", missing=[*serving.models.missing])
