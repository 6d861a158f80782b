"""The gate: what may refuse a request before its body is read, in order, and how it is refused.

A check is a function that takes the request's scope and raises what the client is told. A request that is
refused costs little here; but a client that asks again at once, although it was told when to come back, would
make the server spend its time on refusals. So a connection that comes back too early is answered late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from artifact.errors import ResiduumError
from service.batching.types import DeadlineMissed, QueueFull
from service.http.body import HOLDING
from service.http.problems import problem_of
from service.http.waiting import CLIENT, Client

Check = Callable[[Scope], None]

SLOWED_S = 1.0  # the longest that a refusal is held back


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
            if isinstance(error, QueueFull | DeadlineMissed):
                await _slow_down(scope, error)
            await problem_of(error).answer(scope, receive, send)
        else:
            await self.app(scope, receive, send)
        finally:
            self._accepted.num_requests -= 1
            if (holding := scope.get(HOLDING)) is not None:
                holding.release()


async def _slow_down(scope: Scope, error: QueueFull | DeadlineMissed) -> None:
    """Hold the refusal back if its client was told to wait and did not; nothing is read from it meanwhile."""
    client: Client | None = scope.get(CLIENT)
    if client is None:
        return
    if (early_s := client.seconds_early()) > 0:
        await asyncio.sleep(min(early_s, SLOWED_S))
    client.tell_to_wait(error.retry_after_s)
