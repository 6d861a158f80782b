"""/v2: the Open Inference Protocol v2, as the clients of Triton and KServe speak it. See docs/oip.md.

Routes translate; service/http/oip has the bodies and documents. Every error is {"error": "..."}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from artifact.errors import ResiduumError
from service import errors
from service.batching.types import Result
from service.errors import InvalidInference, NotFound, NotReady, UnknownModel
from service.http.oip import documents
from service.http.oip.body import read_body
from service.http.oip.records import MAX_JSON_BYTES, IndexRequest, LoadRequest, RecordT, parse_json
from service.http.oip.request import Inference, parse_inference
from service.http.oip.response import build_answer, compress, wanted_encoding
from service.http.policy import ADMIN, OPEN, WATCHED, Policy, follows
from service.http.problems import IMAGE_PROBLEMS, OIP_PREFIX, problem_responses
from service.http.schemas import BINARY
from service.http.waiting import serving_of, while_client_waits
from service.runtime.execution import stages_of
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedModel
from service.telemetry.stages import Stages

router = APIRouter(prefix=OIP_PREFIX, tags=["open inference protocol"])

HEADER_LENGTH = "Inference-Header-Content-Length"
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
}
BODY = {
    "requestBody": {
        "required": True,
        "description": "A JSON object; Inference-Header-Content-Length says where tensors follow it.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["inputs"]}},
            "application/octet-stream": {"schema": BINARY},
        },
    }
}


def _errors(*problems: type[ResiduumError]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` for the errors of a route and those of every route."""
    responses = problem_responses(errors.Unauthorized, errors.RateLimited, *problems)
    for response in responses.values():
        response["content"] = {"application/json": {"schema": ERROR}}
    return responses


MODEL_ERRORS = _errors(UnknownModel, NotReady)
BODY_PROBLEMS = (
    InvalidInference,
    errors.RequestTimeout,
    errors.TooManyBytes,
    errors.UnsupportedMediaType,
)


@router.get("/health/live", summary="Tell whether the process answers")
@follows(WATCHED)
async def oip_live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready", summary="Tell whether the server is ready", responses=_errors(NotReady))
@follows(WATCHED)
async def oip_ready(request: Request) -> dict[str, bool]:
    _check_ready(serving_of(request))
    return {"ready": True}


@router.get("", summary="Describe the server", responses=_errors(NotReady))
async def oip_server(request: Request) -> dict[str, Any]:
    return documents.server_metadata(request.app.version)


@router.get("/models/stats", summary="Statistics of all models", responses=_errors(NotReady))
async def oip_all_statistics(request: Request) -> dict[str, Any]:
    models = serving_of(request).models
    return {"model_stats": [documents.model_statistics(model) for model in models]}


@router.get("/models/{name}/versions/{version}", include_in_schema=False)
@router.get("/models/{name}", summary="Describe a model", responses=MODEL_ERRORS)
async def oip_model(request: Request, name: str) -> dict[str, Any]:
    with _leased(request, name) as model:
        return documents.model_metadata(model)


@router.get("/models/{name}/versions/{version}/ready", include_in_schema=False)
@router.get("/models/{name}/ready", summary="Tell whether a model is ready", responses=MODEL_ERRORS)
@follows(OPEN)
async def oip_model_ready(request: Request, name: str) -> dict[str, Any]:
    with _leased(request, name) as model:
        _check_ready(serving_of(request), model)
        return {"name": model.name, "ready": True}


@router.get("/models/{name}/versions/{version}/config", include_in_schema=False)
@router.get("/models/{name}/config", summary="Configuration of a model", responses=MODEL_ERRORS)
async def oip_config(request: Request, name: str) -> dict[str, Any]:
    with _leased(request, name) as model:
        return documents.model_config(model, serving_of(request).settings)


@router.get("/models/{name}/versions/{version}/stats", include_in_schema=False)
@router.get("/models/{name}/stats", summary="Statistics of a model", responses=MODEL_ERRORS)
async def oip_statistics(request: Request, name: str) -> dict[str, Any]:
    with _leased(request, name) as model:
        return {"model_stats": [documents.model_statistics(model)]}


@router.post("/models/{name}/versions/{version}/infer", include_in_schema=False)
@router.post(
    "/models/{name}/infer",
    summary="Classify images",
    responses=_errors(InvalidInference, *IMAGE_PROBLEMS)
    | {200: {"content": {"application/octet-stream": {"schema": BINARY}}}},
    openapi_extra=BODY,
)
@follows(Policy(runs=("classify",)))
async def oip_infer(request: Request, name: str) -> Response:
    """Take pixels or image files, and return logits or the best classes, as JSON or binary tensors."""
    serving = serving_of(request)
    settings = serving.settings
    with _leased(request, name) as model:
        body = await read_body(request, settings, settings.max_request_bytes)
        size = model.manifest.preprocessing.crop
        inference = parse_inference(body, request.headers.get(HEADER_LENGTH), size, settings.max_images)
        deadline = serving.execution.deadline(inference.timeout_ms)
        work = _run(serving, model, inference, deadline)
        results, request.state.stages = await while_client_waits(request, deadline, work)
        logits_NK = np.stack([result.outputs["logits"] for result in results])
        answer = build_answer(inference, model.manifest, logits_NK)
    content, headers = answer.body, {}
    if answer.header_length is not None:
        headers[HEADER_LENGTH] = str(answer.header_length)
    if encoding := wanted_encoding(request.headers.get("accept-encoding", "")):
        content, headers["Content-Encoding"] = compress(content, encoding), encoding
    media_type = "application/json" if answer.header_length is None else "application/octet-stream"
    return Response(content, headers=headers, media_type=media_type)


async def _run(
    serving: Serving, model: LoadedModel, inference: Inference, deadline: float
) -> tuple[list[Result], Stages]:
    if isinstance(inference.images, list):
        ran = await serving.execution.run_images(model, "classify", inference.images, deadline)
        return ran.results, ran.stages
    rows = [{"images": pixels} for pixels in inference.images]
    results = await serving.execution.run_rows(model, "classify", rows, deadline)
    return results, stages_of(results, decode_ms=0)


@router.post(
    "/repository/index",
    summary="List the models that are loaded and those that can be loaded",
    responses=_errors(*BODY_PROBLEMS, NotReady),
)
async def oip_index(request: Request) -> list[dict[str, str]]:
    wanted = await _read_json(request, IndexRequest)
    models = serving_of(request).models
    loaded = {model.name: model for model in models}
    known = {} if wanted.ready else await asyncio.to_thread(models.known)
    return [
        documents.index_entry(name, loaded.get(name)) for name in (*loaded, *sorted({*known} - {*loaded}))
    ]


@router.post(
    "/repository/models/{name}/load",
    summary="Load a model, or load it again",
    responses=_errors(*BODY_PROBLEMS, errors.Forbidden, errors.LoadRefused, UnknownModel, NotReady),
)
@follows(ADMIN)
async def oip_load(request: Request, name: str) -> dict[str, Any]:
    """Needs an admin key. An artifact is served as it is: configuration or files in the body are refused."""
    given = sorted((await _read_json(request, LoadRequest)).parameters)
    if given:
        raise InvalidInference(
            f"Loading takes no parameters; this request has {', '.join(given)}.",
            "An artifact describes itself: docs/artifact.md.",
        )
    await serving_of(request).changes.load_model(name)
    return {}


@router.post(
    "/repository/models/{name}/unload",
    summary="Unload a model",
    responses=_errors(*BODY_PROBLEMS, errors.Forbidden, UnknownModel, NotReady),
)
@follows(ADMIN)
async def oip_unload(request: Request, name: str) -> dict[str, Any]:
    """Needs an admin key. No model depends on another, so `unload_dependents` changes nothing."""
    await _read_json(request, LoadRequest)
    await serving_of(request).changes.unload_model(name)
    return {}


SHARED_MEMORY = "There is no shared memory here: send tensors in the body."
TRACING = "Traces are set at start: residuum serve --otlp-endpoint."
LOGGING = "Logging is set at start: residuum serve --access-log, --log-format."
UNSUPPORTED = {
    "/systemsharedmemory/{rest:path}": SHARED_MEMORY,
    "/cudasharedmemory/{rest:path}": SHARED_MEMORY,
    "/trace/setting": TRACING,
    "/models/{name}/trace/setting": TRACING,
    "/logging": LOGGING,
}


async def oip_unsupported(request: Request) -> None:
    """Answer 404 to calls that tritonclient can make and this server does not have."""
    raise NotFound(UNSUPPORTED[request.scope["route"].path.removeprefix(OIP_PREFIX)])


for path in UNSUPPORTED:
    router.add_api_route(path, oip_unsupported, methods=["GET", "POST"], include_in_schema=False)


@contextmanager
def _leased(request: Request, name: str) -> Iterator[LoadedModel]:
    """Lease the model of that name; raise UnknownModel if the path names another version."""
    with serving_of(request).models.lease(name) as model:
        version = request.path_params.get("version", model.manifest.version)
        if version != model.manifest.version:
            raise UnknownModel(
                f"There is no version {version!r} of {model.name}.", f"Loaded: {model.manifest.version}."
            )
        request.state.model = model.name
        yield model


def _check_ready(serving: Serving, model: LoadedModel | None = None) -> None:
    """Raise NotReady unless the server, or one model in it, is ready.

    A model is ready while only the graphs of others are broken.
    """
    broken = model is None or any(graph.startswith(f"{model.name} ") for graph in serving.broken)
    if serving.state == "unhealthy" and not broken:
        return
    if serving.state != "ready":
        raise NotReady(f"The server is {serving.state}.")


async def _read_json(request: Request, kind: type[RecordT]) -> RecordT:
    """Return the body as a record; an empty body has the defaults."""
    body = await read_body(request, serving_of(request).settings, MAX_JSON_BYTES)
    return parse_json(body or b"{}", kind)
