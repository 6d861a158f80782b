"""Load shedding: refuse before routing, validation or reading of the body if there is no room.

Under three times the load that a server can carry, refusals must not take time from what it can do. The
framework's routing and validation cost half of a refusal, and the body the rest. So this check reads two
query parameters itself and asks the queue. What it cannot read it passes on: the route says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

from starlette.types import Scope

from artifact.errors import Unavailable
from artifact.manifest import GraphKind
from service.errors import NotFound
from service.http.body import HOLDING, declared_bytes
from service.http.policy import CALL, Call, policy_of
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedModel

MODEL = re.compile(rb"(?:^|&)model=([A-Za-z0-9._-]+)(?:&|$)")
TIMEOUT_MS = re.compile(rb"(?:^|&)timeout_ms=([0-9]{1,9})(?:&|$)")


class Shedding:
    """The check that refuses if the model's queue is full or the deadline cannot be met."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def __call__(self, scope: Scope) -> None:
        if not policy_of(scope).runs:
            return
        try:
            scope[HOLDING] = self._serving.held_bytes.hold(declared_bytes(scope["headers"]))
            with suppress(NotFound):  # there is no such model: the route says so
                self._check_room(scope)
        except Unavailable:
            call: Call = scope[CALL]
            scope["route"] = call.route  # for metrics and logs
            raise

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
            scope["state"]["model"] = model.name
            raise

    def _check_any(self, model: LoadedModel, kinds: Sequence[GraphKind], deadline: float) -> None:
        """Raise if all of these graphs that the model has are full; the route decides which will run."""
        present = [kind for kind in kinds if kind in model.graphs]
        for kind in present[:-1]:
            with suppress(Unavailable):
                return self._serving.execution.check_room(model, kind, deadline)
        if present:
            self._serving.execution.check_room(model, present[-1], deadline)
