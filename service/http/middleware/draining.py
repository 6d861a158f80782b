"""Requests while the server drains, that is, after it has been told to stop.

Requests that were accepted before are finished. New ones are refused with 503, and every answer closes its
connection (exchange.py). This module knows nothing of signals and sockets: `process/server.py` waits until
`Accepted` (gate.py) is 0.
"""

from __future__ import annotations

from starlette.types import Scope

from service.errors import NotReady
from service.http.policy import policy_of
from service.runtime.lifecycle import Serving


class RefuseWhileDraining:
    """The check that refuses, while the server drains, all but calls that are open to anybody."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def __call__(self, scope: Scope) -> None:
        if self._serving.is_draining and policy_of(scope).access != "open":
            raise NotReady("The server is shutting down.")
