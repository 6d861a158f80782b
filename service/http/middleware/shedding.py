"""Load shedding: answer 503 before routing, validation or reading of the body if there is no room.

Under three times the load that a server can carry, refusals must not take time from what it can do. The
framework's routing and validation cost half of a refusal, and the body the rest. So this step reads two query
parameters itself and asks the queue. What it cannot read it passes on: the route says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from artifact.errors import ResiduumError, Unavailable
from artifact.manifest import GraphKind
from service.http.policy import CALL, Call, policy_of
from service.http.problems import refuse
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedModel

MODEL = re.compile(rb"(?:^|&)model=([A-Za-z0-9._-]+)(?:&|$)")
TIMEOUT_MS = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,9})(?:&|$)")


class Shedding:
    """Answer 503 if the model's queue is full or the deadline cannot be met."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app = app
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http" and policy_of(scope).runs:
                self._check_room(scope)
        except Unavailable as error:
            await refuse(error, scope, receive, send)
        except ResiduumError:  # there is no such model
            await self.app(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check_room(self, scope: Scope) -> None:
        call: Call = scope[CALL]
        query = scope["query_string"]
        if call.policy.cached and self._serving.settings.cache_bytes:
            return  # the answer may be in the cache; if it is not, there is the same check after the body
        if (name := call.params.get("name")) is None and (named := MODEL.search(query)):
            name = named[1].decode()
        model = self._serving.models.get(name)
        timeout_ms = TIMEOUT_MS.search(query)
        deadline = self._serving.execution.deadline(int(timeout_ms[1]) if timeout_ms else None)
        try:
            self._check_any(model, call.policy.runs, deadline)
        except Unavailable:
            scope["route"] = call.route  # for metrics and logs
            scope["state"]["model"] = model.name
            raise

    def _check_any(self, model: LoadedModel, kinds: Sequence[GraphKind], deadline: float) -> None:
        """Raise if all of these graphs that the model has are full; the route decides which will run."""
        refused: Unavailable | None = None
        for kind in kinds:
            if kind in model.graphs:
                try:
                    return self._serving.execution.check_room(model, kind, deadline)
                except Unavailable as error:
                    refused = error
        if refused:
            raise refused
