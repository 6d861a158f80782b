"""Refuses what there is no room for before anything has been spent on it.

Three times more requests than a server can take must not cost it what it can do. The framework's routing and
checking of parameters cost half of a refusal, and the body the rest; so this looks at the path and two
query parameters itself, and asks the queue. What it cannot make out it lets pass: the route says what is
wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from artifact.manifest import GraphKind
from service.errors import OIP_PREFIX, Problem, Unavailable
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedModel


@dataclass(frozen=True)
class _Route:
    """What a request asks for: the route's template, and the graphs of which one will run."""

    path: str
    kinds: tuple[GraphKind, ...]


ROUTES: dict[str, _Route] = {
    "/classify": _Route("/classify", ("classify",)),
    "/introspect": _Route("/introspect", ("introspect", "attribute")),
}
OIP_INFER = re.compile(re.escape(OIP_PREFIX) + r"/models/([^/]+)(?:/versions/[^/]+)?/infer")
OIP_ROUTE = _Route(OIP_PREFIX + "/models/{name}/infer", ("classify",))
MODEL = re.compile(rb"(?:^|&)model=([A-Za-z0-9._-]+)(?:&|$)")
TIMEOUT_MS = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,9})(?:&|$)")


class Shedding:
    """503 for an image that its model's queue has no room for, or that could not be done in time."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and scope["method"] in ("POST", "PUT"):
                self._check_room(scope)
        except Unavailable as problem:
            await problem.answer(scope, receive, send)
        except Problem:  # there is no such model
            await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check_room(self, scope: Scope) -> None:
        path, query = scope["path"], scope["query_string"]
        if self._serving.settings.cache_bytes and path in ROUTES:
            return  # its answer may be known; for what is not, there is the same question after the body
        if (route := ROUTES.get(path)) is not None:
            named = MODEL.search(query)
            name = named[1].decode() if named else None
        elif (infer := OIP_INFER.fullmatch(path)) is not None:
            route, name = OIP_ROUTE, infer[1]
        else:
            return
        model = self._serving.models.get(name)
        timeout_ms = TIMEOUT_MS.search(query)
        deadline = self._serving.deadline(int(timeout_ms[1]) if timeout_ms else None)
        try:
            self._check_any(model, route.kinds, deadline)
        except Problem:
            scope["route"] = route  # as the framework would have it, for metrics and logs
            scope["state"]["model"] = model.name
            raise

    def _check_any(self, model: LoadedModel, kinds: Sequence[GraphKind], deadline: float) -> None:
        """Raise if every one of these graphs that the model has is full; the route knows which will run."""
        refused: Problem | None = None
        for kind in kinds:
            if kind in model.graphs:
                try:
                    return self._serving.check_room(model, kind, deadline)
                except Problem as problem:
                    refused = problem
        if refused:
            raise refused
