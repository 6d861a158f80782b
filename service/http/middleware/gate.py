"""The gate: what may refuse a request before its body is read, in order, and how it is refused.

A check is a function that takes the request's scope and raises what the client is told. A request that is
refused costs little here; a connection that comes back too early is answered late (waiting.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from artifact.errors import ResiduumError
from service.http.body import HOLDING
from service.http.problems import problem_of
from service.http.waiting import slow_down

Check = Callable[[Scope], None]


@dataclass
class Accepted:
    """Number of requests that were not refused because the server drains, and are being answered."""

    num_requests: int = 0


class Gate:
    """Answer with the error of the first check that raises one; else pass the request on.

    Args:
        draining: the check that refuses while the server drains; it does not count as accepted what it
            refuses.
        checks: the others, in order.
    """

    def __init__(self, app: ASGIApp, draining: Check, checks: Sequence[Check], accepted: Accepted) -> None:
        self.app = app
        self._draining = draining
        self._checks = checks
        self._accepted = accepted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._draining(scope)
        except ResiduumError as error:
            await problem_of(error).answer(scope, receive, send)
            return
        self._accepted.num_requests += 1
        try:
            for check in self._checks:
                check(scope)
        except ResiduumError as error:
            await slow_down(scope, error)
            await problem_of(error).answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)
        finally:
            self._accepted.num_requests -= 1
            if (holding := scope.get(HOLDING)) is not None:
                holding.release()
