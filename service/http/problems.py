"""What went wrong, whoever raised it, as a problem document (RFC 9457)."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from service.errors import (
    MEDIA_TYPE,
    BadImage,
    DeadlineExceeded,
    EngineFailed,
    InvalidParameter,
    InvalidPart,
    MalformedMultipart,
    MethodNotAllowed,
    NotFound,
    NotReady,
    OtherProblem,
    Overloaded,
    Problem,
    RateLimited,
    RequestTimeout,
    TooManyBytes,
    TooManyImages,
    Unauthorized,
    UnknownModel,
    UnsupportedMediaType,
)
from service.http.schemas import ProblemDocument

# What every call that takes images may answer with.
IMAGE_PROBLEMS: tuple[type[Problem], ...] = (
    MalformedMultipart,
    UnknownModel,
    TooManyBytes,
    UnsupportedMediaType,
    BadImage,
    InvalidParameter,
    InvalidPart,
    TooManyImages,
    Unauthorized,
    RequestTimeout,
    RateLimited,
    NotReady,
    Overloaded,
    DeadlineExceeded,
    EngineFailed,
)


def problem_responses(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for what a route may raise, by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
        response = responses.setdefault(problem.status, {"description": problem.title, "content": content})
        if problem.title not in response["description"]:
            response["description"] += f"; {problem.title.lower()}"
    return responses


def add_error_handlers(app: FastAPI) -> None:
    """Make every answer that is not a success a problem document, and say so in the OpenAPI document."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schemas = document["components"]["schemas"]
        schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):  # what the framework would have said
            schemas.pop(name, None)
        for path in document["paths"].values():
            for operation in path.values():
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    request.state.problem = error.code
    return error.response(request.url.path)


async def _on_invalid_query(request: Request, error: Exception) -> Response:
    """Pydantic's complaint about a query parameter (no route has any other input that it checks)."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parameter = str(first["loc"][-1] if len(first["loc"]) < 2 else first["loc"][1])
    if first["type"] == "extra_forbidden":
        detail, hint = f"There is no query parameter {parameter!r} here.", "GET /docs lists them."
    else:
        message = str(first["msg"])
        detail, hint = f"{parameter}={first['input']}: {message[0].lower()}{message[1:]}.", ""
    return await _on_problem(request, InvalidParameter(parameter, detail, hint))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself raises: 404 for a path, 405 for a method."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 405:
        allowed = ", ".join(allowed_methods(request))
        if method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allowed})
        problem: Problem = MethodNotAllowed(
            f"{method} is not possible on {path}.", f"Allowed: {allowed}.", {"Allow": allowed}
        )
    elif error.status_code == 404:
        problem = NotFound(f"There is nothing at {path}.", "GET /docs lists every call.")
    else:
        problem = OtherProblem(error.status_code, str(error.detail), dict(error.headers or {}))
    return await _on_problem(request, problem)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Nobody reads this; 499 is what access logs customarily say then."""
    return Response(status_code=499)


def allowed_methods(request: Request) -> list[str]:
    """The methods of every route at the request's path; the framework names only those of the first."""
    methods = [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
    return ["HEAD", "OPTIONS", *methods] if "GET" in methods else ["OPTIONS", *methods]
