"""POST /introspect: take one image, return what every residual block did, as JSON, NPZ, PNG or ZIP."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from artifact.errors import NotFiniteError, ParameterError
from artifact.manifest import Manifest
from artifact.preprocess import Row
from introspection.forms import FORMS, JSON, Form
from introspection.graph_inputs import graph_kind, inputs, lesion_logits, num_lesion_rows
from introspection.measure import Values, measure
from introspection.question import Question, resolve
from introspection.readings import LesionLogits
from introspection.schemas import Introspection
from introspection.seen import Run, Seen
from introspection.steps import Steps, finish
from service import errors
from service.errors import DeadlineExceeded
from service.http.body import read_image
from service.http.middleware.gate import Accepted
from service.http.negotiation import negotiate
from service.http.policy import Policy, follows
from service.http.problems import IMAGE_PROBLEMS, problem_responses
from service.http.schemas import BINARY, IntrospectParameters, image_body
from service.http.waiting import serving_of, while_client_waits
from service.runtime.cache import CACHE_HIT
from service.runtime.execution import Ran, graph_of
from service.runtime.introspect import lesion_chunks
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedGraph, LoadedModel
from service.telemetry.stages import Stages

router = APIRouter(tags=["introspect"])

# The JSON of networks up to these takes a millisecond or two without lesions: so long may the event loop be
# held up where no other request needs it.
SHORT_BLOCKS = 12
SHORT_POSITIONS = 4096  # of all blocks together


RESPONSES = problem_responses(*IMAGE_PROBLEMS, errors.NotAcceptable) | {
    200: {
        "model": Introspection,
        "description": "The answer, in the form that `Accept` asks for",
        "content": {
            form.media_type: {"schema": BINARY | {"description": form.description}}
            for form in FORMS.values()
            if form.description
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
@follows(Policy(runs=("introspect", "attribute"), cached=True, direct=True))
async def introspect(request: Request, query: Annotated[IntrospectParameters, Query()]) -> Response:
    """Maps and scalars of every residual block for one image. PUT is the same call, for `curl -T cat.jpg`."""
    serving = serving_of(request)
    form = negotiate(request.headers.getlist("accept"))
    with serving.models.lease(query.model) as model:
        request.state.model = model.name
        question = form.shown(resolve(query, model.manifest), model.manifest)
        image = await read_image(request, serving.settings)
        deadline = serving.execution.deadline(query.timeout_ms)
        parameters = ("introspect", model.fingerprint, question.digest(), form.media_type)
        make = partial(_introspect, request, model, image, question, form)
        work = serving.cache.get([image], parameters, make, deadline)
        introspected, cached = await while_client_waits(request, deadline, work)
    headers = {"Vary": "Accept"}
    if cached:
        headers["Cache-Status"] = CACHE_HIT
    else:
        request.state.stages = introspected.stages
    return Response(introspected.body, media_type=form.media_type, headers=headers)


@dataclass(frozen=True)
class _Introspected:
    body: bytes
    stages: Stages

    @property
    def num_bytes(self) -> int:
        return len(self.body)


async def _introspect(
    request: Request, model: LoadedModel, data: bytes, question: Question, form: Form, deadline: float
) -> _Introspected:
    if not form.with_pictures:
        return await _answer(request, model, data, question, form, deadline)
    with serving_of(request).drawings.place():
        return await _answer(request, model, data, question, form, deadline)


async def _answer(
    request: Request, model: LoadedModel, data: bytes, question: Question, form: Form, deadline: float
) -> _Introspected:
    started, serving = time.monotonic(), serving_of(request)
    if num_rows := num_lesion_rows(question):
        serving.execution.check_time(model, "introspect", num_rows, deadline)
    graph = graph_of(model, graph_kind(model.manifest, question))
    ran = await serving.execution.run_images(
        model,
        graph.kind,
        [data],
        deadline,
        inputs=inputs(graph.graph, question),
        keep_original=form.with_pictures,
    )
    lesions, ran = await _without_blocks(serving, model, question, ran, deadline)

    def written() -> Steps[bytes]:
        seen = _seen(model.manifest, graph, question, ran, lesions, started)
        return (yield from form.steps(seen, question))

    # To wake another thread, and then the loop, takes 0.3 ms, and more where other work has the cores.
    if form is JSON and lesions is None and _is_short(ran.results[0].outputs) and _is_alone(request):
        return _Introspected(finish(written()), ran.stages)
    if not form.with_pictures:
        return _Introspected(await asyncio.to_thread(lambda: finish(written())), ran.stages)
    try:
        return _Introspected(await serving.drawings.draw(written(), deadline), ran.stages)
    except TimeoutError as error:
        wait_s = serving.execution.seconds_until_free()
        raise DeadlineExceeded("The request's deadline has passed.", wait_s) from error


def _is_short(outputs: Row) -> bool:
    """Return whether JSON of a graph's outputs is made in so little time that the event loop can spare it."""
    num_positions, num_blocks = outputs["maps"].shape[-1], len(outputs["scalars"])
    return num_blocks <= SHORT_BLOCKS and num_positions <= SHORT_POSITIONS


def _is_alone(request: Request) -> bool:
    """Return whether no other request is being answered, so that nobody else waits for the event loop."""
    accepted: Accepted = request.app.state.accepted
    return accepted.num_requests == 1


async def _without_blocks(
    serving: Serving, model: LoadedModel, question: Question, ran: Ran, deadline: float
) -> tuple[LesionLogits | None, Ran]:
    """Return the logits without each block, if asked for; their time counts as the run's inference."""
    started = time.monotonic()
    logits = [
        logits_K
        for rows in lesion_chunks(model, ran.images[0].pixels, question)
        for logits_K in await serving.execution.run_logits(model, "introspect", rows, deadline)
    ]
    if not logits:
        return None, ran
    took_ms = (time.monotonic() - started) * 1000
    before = ran.stages
    stages = Stages(before.decode_ms, before.queue_ms, before.inference_ms + took_ms, before.batch_size)
    return lesion_logits(question, logits), replace(ran, stages=stages)


def _seen(
    manifest: Manifest,
    graph: LoadedGraph,
    question: Question,
    ran: Ran,
    lesions: LesionLogits | None,
    started: float,
) -> Seen:
    """Return the results for the image; `started` is when the request was read."""
    [image], [result] = ran.images, ran.results
    timing_ms = {
        "decode": ran.stages.decode_ms,
        "queue": ran.stages.queue_ms,
        "inference": ran.stages.inference_ms,
    }
    values = measured(manifest, question, result.outputs, lesions)
    timing_ms["total"] = (time.monotonic() - started) * 1000
    return Seen(manifest, values, image, Run(graph.precision, graph.engine.name, timing_ms))


def measured(
    manifest: Manifest, question: Question, outputs: Row, lesions: LesionLogits | None = None
) -> Values:
    """Measure; if activations are not finite because of gates, that is the client's mistake.

    Raises:
        ParameterError: activations are not finite, and gates were given.
        NotFiniteError: they are not, without gates.
    """
    try:
        return measure(manifest, outputs, target=question.target.index, lesions=lesions)
    except NotFiniteError as error:
        if np.all(question.gates_L == 1):
            raise
        raise ParameterError(
            "gates", "gates: with these, activations leave the range of numbers.", "Choose smaller ones."
        ) from error
