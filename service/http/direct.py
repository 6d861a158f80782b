"""The last step: call the handler of a hot route directly, past the framework's routing and validation.

The framework spends more on a request than all else on the event loop: it looks for the route that
`policy.py` has found already, solves dependencies that a handler of two arguments does not have, and checks
answers that were just made. So a handler whose policy is `direct` takes the request and its query parameters,
and returns a response. The framework knows it as any other route, and describes it in the OpenAPI document.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_type_hints

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.error_handlers import answer_to
from service.http.policy import CALL, Call


class CallDirectly:
    """Call the handler of a route whose policy is `direct`; pass every other request on."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call | None = scope.get(CALL)
        if call is None or not call.policy.direct:
            await self.app(scope, receive, send)
            return
        assert isinstance(call.route, Route)
        scope["route"] = call.route  # as the framework would have it, for metrics and logs
        request = Request(scope, receive, send)
        response: Response
        try:
            query = read_query(query_model(call.route.endpoint), scope["query_string"])
            response = await call.route.endpoint(request, query)
        except Exception as error:
            response = await answer_to(request, error)
        await response(scope, receive, send)


@cache
def query_model(handler: Any) -> type[BaseModel]:
    """Return the class of a handler's query parameters: the annotation of its argument `query`."""
    model: type[BaseModel] = get_type_hints(handler)["query"]
    return model


def read_query(model: type[BaseModel], query_string: bytes) -> BaseModel:
    """Return the query parameters as the framework reads them; of a parameter that comes twice, the last.

    Raises:
        RequestValidationError: a parameter is unknown, or its value is not allowed.
    """
    if not query_string:
        return _defaults(model)
    try:
        return model.model_validate(dict(QueryParams(query_string)))
    except ValidationError as error:
        located = [{**one, "loc": ("query", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(located) from error


@cache
def _defaults(model: type[BaseModel]) -> BaseModel:
    return model()
