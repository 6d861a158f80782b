"""POST /classify: images in, labels out."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from service import errors
from service.body import read_images
from service.errors import InvalidParameter, problem_responses
from service.postprocess import top_predictions
from service.repository import LoadedModel
from service.schemas import Classification, ClassifyQuery, ImageInfo, ImageResult, Timing, image_body
from service.serving import Serving, serving_of, while_client_waits

router = APIRouter(tags=["classify"])

PROBLEMS = problem_responses(*errors.IMAGE_PROBLEMS)


@router.put(
    "/classify",
    summary="Classify an image (what `curl -T` sends)",
    operation_id="classify_put",
    responses=PROBLEMS,
    openapi_extra=image_body(several=True),
)
@router.post(
    "/classify",
    summary="Classify images",
    responses=PROBLEMS,
    openapi_extra=image_body(several=True),
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Classification:
    """The most probable classes of every image. PUT is the same call, for `curl -T cat.jpg` sends that."""
    serving = serving_of(request)
    model = serving.model(query.model)
    top_k = _allowed_top_k(query, model)
    images = await read_images(request, serving.settings)
    deadline = serving.deadline(query.timeout_ms)
    return await while_client_waits(request, deadline, _classify(serving, model, images, top_k, deadline))


def _allowed_top_k(query: ClassifyQuery, model: LoadedModel) -> int:
    """What was asked for; the default is cut to the number of classes."""
    num_classes = model.manifest.num_classes
    if "top_k" in query.model_fields_set and query.top_k > num_classes:
        raise InvalidParameter(
            "top_k",
            f"top_k={query.top_k}: {model.name} has {num_classes} classes; allowed: 1 to {num_classes}.",
        )
    return min(query.top_k, num_classes)


async def _classify(
    serving: Serving, model: LoadedModel, images: list[bytes], top_k: int, deadline: float
) -> Classification:
    started = time.monotonic()
    photographs = await serving.decoders.preprocess(images, model.manifest.preprocessing)
    decoded = time.monotonic()
    rows = [{"images": photograph.pixels} for photograph in photographs]
    results = await serving.run(model.classify, rows, deadline)
    last = max(results, key=lambda result: result.queue_ms + result.inference_ms)
    answers = [
        ImageResult(
            predictions=top_predictions(result.outputs["logits"], model.manifest.labels, top_k),
            image=ImageInfo(format=photograph.format, width=photograph.width, height=photograph.height),
        )
        for photograph, result in zip(photographs, results, strict=True)
    ]
    return Classification(
        model=model.name,
        version=model.manifest.version,
        precision=model.precision,
        engine=model.engine.name,
        results=answers,
        timing_ms=Timing(
            decode=round((decoded - started) * 1000, 3),
            queue=round(last.queue_ms, 3),
            inference=round(last.inference_ms, 3),
            total=round((time.monotonic() - started) * 1000, 3),
        ),
    )
