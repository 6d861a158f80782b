"""Error handlers: each error that a route or the framework raises becomes a problem document."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from artifact.errors import ParameterError, ResiduumError
from service.errors import NotFound
from service.http.problems import TABLE, Problem, problem_of, row_of
from service.http.schemas import ProblemDocument


def add_error_handlers(app: FastAPI) -> None:
    """Make every answer that is not a success a problem document, and say so in the OpenAPI document."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schemas = document["components"]["schemas"]
        schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):  # the framework's own description of a 422
            schemas.pop(name, None)
        for path in document["paths"].values():
            for operation in path.values():
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"]["422"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it
    for kind in TABLE:  # starlette looks up the class of an error, then its bases
        app.add_exception_handler(kind, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def answer_to(error: Exception, request: Request) -> Response:
    """Return the answer to an error of a handler that the framework does not call; raise what is a bug."""
    if isinstance(error, RequestValidationError):
        return await _on_invalid_query(request, error)
    if isinstance(error, ClientDisconnect):
        return await _on_disconnect(request, error)
    if isinstance(error, ResiduumError) and row_of(type(error)) is not None:
        return await _on_error(request, error)
    raise error


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ResiduumError)
    return _say(request, problem_of(error))


def _say(request: Request, problem: Problem) -> Response:
    request.state.problem = problem.code
    return problem.response(request.url.path)


async def _on_invalid_query(request: Request, error: Exception) -> Response:
    """Answer pydantic's error about a query parameter; routes have no other input that pydantic checks."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    parameter = str(first["loc"][-1] if len(first["loc"]) < 2 else first["loc"][1])
    if first["type"] == "extra_forbidden":
        detail, hint = f"There is no query parameter {parameter!r} here.", "GET /docs lists them."
    else:
        message = str(first["msg"])
        detail, hint = f"{parameter}={first['input']}: {message[0].lower()}{message[1:]}.", ""
    return await _on_error(request, ParameterError(parameter, detail, hint))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Answer an error of the framework: 404 for a path, 405 for a method, others by their status."""
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    if error.status_code == 404:
        return await _on_error(
            request, NotFound(f"There is nothing at {path}.", "GET /docs lists every call.")
        )
    if error.status_code == 405:
        allowed = ", ".join(allowed_methods(request))
        headers = {"Allow": allowed}
        if method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail, hint = f"{method} is not possible on {path}.", f"Allowed: {allowed}."
        return _say(request, Problem(405, "method_not_allowed", "Method not allowed", detail, hint, headers))
    title = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    return _say(request, Problem(error.status_code, "http_error", title, detail, headers=error.headers or {}))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Give the access log its customary 499; the client has left and reads no answer."""
    return Response(status_code=499)


def allowed_methods(request: Request) -> list[str]:
    """Return the methods of every route at the request's path; the framework names those of one route."""
    methods = [
        method
        for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    ]
    return ["HEAD", "OPTIONS", *methods] if "GET" in methods else ["OPTIONS", *methods]
