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
from service.http.waiting import slow_down


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
    # starlette looks up the class of an error, then its bases
    for kind in (*TABLE, RequestValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, answer_to)


async def answer_to(request: Request, error: Exception) -> Response:
    """Return the answer to an error of a handler; raise what is a bug."""
    response: Response
    if isinstance(error, RequestValidationError):
        response = _on_invalid_query(request, error)
    elif isinstance(error, HTTPException):
        response = _on_http_exception(request, error)
    elif isinstance(error, ClientDisconnect):  # nobody reads it: the access log has its customary number
        response = Response(status_code=499)
    elif isinstance(error, ResiduumError) and row_of(type(error)) is not None:
        response = _say(request, problem_of(error))
    else:
        raise error
    _forget_frames(error)
    if isinstance(error, ResiduumError):
        await slow_down(request.scope, error)
    return response


def _forget_frames(error: BaseException) -> None:
    """Forget where an error came from.

    Its frames hold the files of the request, and may hold the error: a cycle, which keeps the files until the
    garbage collector runs.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _say(request: Request, problem: Problem) -> Response:
    request.state.problem = problem.code
    return problem.response(request.url.path)


def _on_invalid_query(request: Request, error: RequestValidationError) -> Response:
    """Answer pydantic's error about a query parameter; routes have no other input that pydantic checks."""
    first = error.errors()[0]
    parameter = str(first["loc"][-1] if len(first["loc"]) < 2 else first["loc"][1])
    if first["type"] == "extra_forbidden":
        detail, hint = f"There is no query parameter {parameter!r} here.", "GET /docs lists them."
    else:
        message = str(first["msg"])
        detail, hint = f"{parameter}={first['input']}: {message[0].lower()}{message[1:]}.", ""
    return _say(request, problem_of(ParameterError(parameter, detail, hint)))


def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Answer an error of the framework: 404 for a path, 405 for a method, others by their status."""
    path, method = request.url.path, request.method
    if error.status_code == 404:
        missing = NotFound(f"There is nothing at {path}.", "GET /docs lists every call.")
        return _say(request, problem_of(missing))
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
