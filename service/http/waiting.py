"""Run work for a request while its client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from artifact.errors import ResiduumError
from service.batching.types import DeadlineMissed, QueueFull
from service.errors import DeadlineExceeded, Overloaded
from service.http.body import HOLDING, end
from service.http.problems import retry_after
from service.runtime.lifecycle import Serving

T = TypeVar("T")

SLOWED_S = 1.0  # the longest that a refusal is held back

CLIENT = "residuum.client"  # in a request's scope: the Client, if our own protocol took the request


def serving_of(request: Request) -> Serving:
    """Return the server that a request came to."""
    serving: Serving = request.app.state.serving
    return serving


class Connection:
    """What a connection's client was told: not to come back before `retry_at`, in `time.monotonic()`."""

    __slots__ = ("retry_at",)

    def __init__(self) -> None:
        self.retry_at = 0.0


class Client:
    """Whether the client of a request is still there; the protocol says when it leaves."""

    __slots__ = ("_connection", "_when_gone", "is_gone")

    def __init__(self, connection: Connection | None = None) -> None:
        self._connection = connection or Connection()
        self.is_gone = False
        self._when_gone: Callable[[], None] = _nothing

    def leave(self) -> None:
        """Note that the client has left, and tell who waits for it."""
        self.is_gone = True
        self._when_gone()

    @contextmanager
    def watched(self, when_gone: Callable[[], None]) -> Iterator[None]:
        """Call `when_gone` when the client leaves within the block; at once if it has left before."""
        self._when_gone = when_gone
        if self.is_gone:
            when_gone()
        try:
            yield
        finally:
            self._when_gone = _nothing

    def seconds_early(self) -> float:
        """Return how long before the time it was told to wait for the client has come; negative: after it."""
        return self._connection.retry_at - time.monotonic()

    def tell_to_wait(self, seconds: float) -> None:
        """Note that the client is told to wait, in whole seconds as Retry-After has it."""
        self._connection.retry_at = time.monotonic() + retry_after(seconds)


def _nothing() -> None:
    pass


async def slow_down(scope: Scope, error: ResiduumError) -> None:
    """Hold a refusal back if its client was told to wait and did not; nothing is read from it meanwhile.

    A client that asks again at once would make the server spend its time on refusals.
    """
    client: Client | None = scope.get(CLIENT)
    if client is None or not isinstance(error, QueueFull | DeadlineMissed | Overloaded):
        return
    if (holding := scope.get(HOLDING)) is not None:
        holding.release()  # its files are gone already
    if (early_s := client.seconds_early()) > 0:
        await asyncio.sleep(min(early_s, SLOWED_S))
    client.tell_to_wait(error.retry_after_s)


async def while_client_waits(request: Request, deadline: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it when the client leaves or the deadline passes.

    The request's body must have been read.

    Raises:
        ClientDisconnect: the client left.
        DeadlineExceeded: the deadline passed.
    """
    client: Client | None = request.scope.get(CLIENT)
    watcher = None
    if client is None:  # another server than ours: only its messages tell
        client = Client()
        watcher = asyncio.create_task(_tell_when_gone(request, client))
    limit = asyncio.timeout(max(0.0, deadline - time.monotonic()))

    try:
        async with limit:
            with client.watched(partial(end, limit)):
                return await work
    except TimeoutError as error:
        if not limit.expired():  # the work's own
            raise
        if client.is_gone:
            serving_of(request).metrics.cancelled()
            raise ClientDisconnect from error
        wait_s = serving_of(request).execution.seconds_until_free()
        raise DeadlineExceeded("The request's deadline has passed.", wait_s) from error
    finally:
        if watcher is not None:
            watcher.cancel()


async def _tell_when_gone(request: Request, client: Client) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    client.leave()
