"""POST /classify: take images, return labels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic_core import to_json

from artifact.errors import ParameterError
from artifact.postprocess import TopKError, allowed_top_k, top_predictions
from service.http.body import read_images
from service.http.policy import Policy, follows
from service.http.problems import IMAGE_PROBLEMS, problem_responses
from service.http.schemas import Classification, ClassifyQuery, image_body
from service.http.waiting import serving_of, while_client_waits
from service.runtime.cache import CACHE_HIT
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedModel
from service.telemetry.stages import Stages

router = APIRouter(tags=["classify"])

# What an image and each of its predictions take in the cache; tracemalloc says 480 and 135.
IMAGE_BYTES = 512
PREDICTION_BYTES = 160

PROBLEMS = problem_responses(*IMAGE_PROBLEMS)


@router.put(
    "/classify",
    summary="Classify an image (what `curl -T` sends)",
    operation_id="classify_put",
    response_model=Classification,
    responses=PROBLEMS,
    openapi_extra=image_body(several=True),
)
@router.post(
    "/classify",
    summary="Classify images",
    response_model=Classification,
    responses=PROBLEMS,
    openapi_extra=image_body(several=True),
)
@follows(Policy(runs=("classify",), cached=True, direct=True))
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Return the most probable classes of every image. PUT is the same call, for `curl -T cat.jpg`."""
    serving = serving_of(request)
    with serving.models.lease(query.model) as model:
        request.state.model = model.name
        top_k = _allowed_top_k(query, model)
        images = await read_images(request, serving.settings)
        started = time.monotonic()
        deadline = serving.execution.deadline(query.timeout_ms)
        parameters = ("classify", model.fingerprint, top_k)
        make = partial(_classify, serving, model, images, top_k)
        work = serving.cache.get(images, parameters, make, deadline)
        classified, cached = await while_client_waits(request, deadline, work)
    stages = Stages(0, 0, 0) if cached else classified.stages
    if not cached:
        request.state.stages = stages
    # A Classification, without building one to be thrown away.
    answer = {
        "model": model.name,
        "version": model.manifest.version,
        "precision": model.precision,
        "engine": model.engine.name,
        "results": classified.results,
        "timing_ms": {
            "decode": round(stages.decode_ms, 3),
            "queue": round(stages.queue_ms, 3),
            "inference": round(stages.inference_ms, 3),
            "total": round((time.monotonic() - started) * 1000, 3),
        },
    }
    headers = {"Cache-Status": CACHE_HIT} if cached else None
    return Response(to_json(answer), headers=headers, media_type="application/json")


@dataclass(frozen=True)
class _Classified:
    results: list[dict[str, Any]]  # each an ImageResult
    stages: Stages

    @property
    def num_bytes(self) -> int:
        num_predictions = sum(len(result["predictions"]) for result in self.results)
        return IMAGE_BYTES * len(self.results) + PREDICTION_BYTES * num_predictions


def _allowed_top_k(query: ClassifyQuery, model: LoadedModel) -> int:
    """Return the number of predictions asked for; the default is cut to the number of classes."""
    default = "top_k" not in query.model_fields_set
    try:
        return allowed_top_k(query.top_k, model.manifest, default=default)
    except TopKError as error:
        allowed = f"allowed: 1 to {model.manifest.num_classes}"
        raise ParameterError("top_k", f"top_k={query.top_k}: {error}; {allowed}.") from error


async def _classify(
    serving: Serving, model: LoadedModel, images: list[bytes], top_k: int, deadline: float
) -> _Classified:
    ran = await serving.execution.run_images(model, "classify", images, deadline)
    labels = model.manifest.labels
    results = [
        {
            "predictions": top_predictions(result.outputs["logits"], labels, top_k),
            "image": {
                "format": photograph.format,
                "width": photograph.width,
                "height": photograph.height,
            },
        }
        for photograph, result in zip(ran.images, ran.results, strict=True)
    ]
    return _Classified(results, ran.stages)
