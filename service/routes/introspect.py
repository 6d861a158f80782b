"""POST /introspect: one image in; what every residual block did comes out, as JSON, NPZ or a picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from models.manifest import Manifest
from service import errors
from service.batch_types import Row
from service.body import read_image
from service.cache import CACHE_HIT
from service.errors import InvalidParameter, NotAcceptable, problem_responses
from service.introspection import NotFiniteError, Quantities, measure
from service.introspection_answer import Run, answer, to_json, to_npz
from service.introspection_query import IntrospectQuery, Options, ParameterError, resolve
from service.introspection_schemas import Introspection
from service.loading import LoadedModel
from service.rendering import contact_sheet, sheet_quantities
from service.schemas import BINARY, image_body
from service.serving import Ran, Serving, serving_of, while_client_waits
from service.timing import Stages

router = APIRouter(tags=["introspect"])

JSON, NPZ, PNG = "application/json", "application/x-npz", "image/png"
OFFERED = (JSON, NPZ, PNG)


RESPONSES = problem_responses(*errors.IMAGE_PROBLEMS, errors.NotAcceptable) | {
    200: {
        "model": Introspection,
        "description": "The answer, in the form that `Accept` asks for",
        "content": {
            NPZ: {"schema": BINARY | {"description": "arrays for `numpy.load`, and the JSON as `metadata`"}},
            PNG: {"schema": BINARY | {"description": "a contact sheet: the blocks over the photograph"}},
        },
    }
}


@router.put(
    "/introspect",
    summary="Introspect an image (what `curl -T` sends)",
    operation_id="introspect_put",
    responses=RESPONSES,
    openapi_extra=image_body(several=False),
)
@router.post(
    "/introspect",
    summary="What every residual block did",
    operation_id="introspect",
    responses=RESPONSES,
    openapi_extra=image_body(several=False),
)
async def introspect(request: Request, query: Annotated[IntrospectQuery, Query()]) -> Response:
    """Maps and scalars of every residual block for one image. PUT is the same call, for `curl -T cat.jpg`."""
    serving = serving_of(request)
    media_type = negotiate(request.headers.getlist("accept"))
    with serving.lease(query.model) as model:
        request.state.model = model.name
        try:
            options = resolve(query, model.manifest)
            if media_type == PNG:
                sheet_quantities(options, model.manifest.variant)  # fails here and not after all the work
        except ParameterError as error:
            raise InvalidParameter(error.parameter, error.detail, error.hint) from error
        image = await read_image(request, serving.settings)
        deadline = serving.deadline(query.timeout_ms)
        asked = query.model_dump_json(exclude={"timeout_ms"})
        parameters = ("introspect", model.fingerprint, asked, media_type)
        work = serving.cache.get(
            [image], parameters, lambda: _introspect(serving, model, image, options, media_type, deadline)
        )
        introspected, cached = await while_client_waits(request, deadline, work)
    headers = {"Vary": "Accept"}
    if cached:
        headers["Cache-Status"] = CACHE_HIT
    else:
        request.state.stages = introspected.stages
    return Response(introspected.body, media_type=media_type, headers=headers)


@dataclass(frozen=True)
class _Introspected:
    body: bytes
    stages: Stages

    @property
    def num_bytes(self) -> int:
        return len(self.body)


async def _introspect(
    serving: Serving, model: LoadedModel, data: bytes, options: Options, media_type: str, deadline: float
) -> _Introspected:
    started = time.monotonic()
    gates = {"gates": options.gates_L}
    keep_original = media_type == PNG
    ran = await serving.run_images(
        model, "introspect", [data], deadline, inputs=gates, keep_original=keep_original
    )
    # A picture takes tenths of a second, which the event loop does not have.
    body = await asyncio.to_thread(_body, model, options, ran, media_type, started)
    return _Introspected(body, ran.stages)


def _body(model: LoadedModel, options: Options, ran: Ran, media_type: str, started: float) -> bytes:
    """The graph's outputs in the form asked for."""
    [image], [result] = ran.images, ran.results
    quantities = measured(model.manifest, options, result.outputs)
    if media_type == PNG:
        return contact_sheet(quantities, model.manifest, options, image)
    graph = model.graphs["introspect"]
    timing_ms = {
        "decode": ran.stages.decode_ms,
        "queue": ran.stages.queue_ms,
        "inference": ran.stages.inference_ms,
        "total": (time.monotonic() - started) * 1000,
    }
    run = Run(graph.precision, graph.engine.name, timing_ms)
    if media_type == NPZ:
        return to_npz(quantities, model.manifest, options, image, run)
    return to_json(answer(quantities, model.manifest, options, image, run))


def measured(manifest: Manifest, options: Options, outputs: Row) -> Quantities:
    """`measure`, where gates that blow the activations up are the client's mistake.

    Raises:
        InvalidParameter: activations are not finite, and gates were given.
        NotFiniteError: they are not, without gates.
    """
    try:
        return measure(manifest, outputs["logits"], outputs["scalars"], outputs["maps"])
    except NotFiniteError as error:
        if np.all(options.gates_L == 1):
            raise
        raise InvalidParameter(
            "gates", "gates: with these, activations leave the range of numbers.", "Choose smaller ones."
        ) from error


def negotiate(accept: Sequence[str]) -> str:
    """The media type of OFFERED that the client likes best; JSON if it does not say.

    Of equally liked ones that which is named most exactly, then the first of OFFERED (RFC 9110, 12.5.1).

    Raises:
        NotAcceptable: it accepts none of them.
    """
    ranges = [_media_range(text) for text in ",".join(accept).split(",") if text.strip()]
    if not ranges:
        return JSON
    liked = {}
    for offer in OFFERED:
        patterns = (offer, offer.split("/")[0] + "/*", "*/*")
        matching = [(-patterns.index(name), quality) for name, quality in ranges if name in patterns]
        exactness, quality = max(matching, default=(0, 0.0))
        liked[offer] = (quality, exactness)
    best = max(OFFERED, key=lambda offer: liked[offer])
    if liked[best][0] <= 0:
        raise NotAcceptable(
            "Nothing that Accept allows can be given.",
            f"Accept one of: {', '.join(OFFERED)}.",
            offered=OFFERED,
        )
    return best


def _media_range(text: str) -> tuple[str, float]:
    """`image/*;q=0.5` -> ("image/*", 0.5); a quality that is no number counts as 1."""
    name, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, min(1.0, max(0.0, float(value)))
            except ValueError:
                break
    return name, 1.0
