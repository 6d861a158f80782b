"""Run work for a request while its client waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from service.errors import DeadlineExceeded
from service.runtime.lifecycle import Serving

T = TypeVar("T")


def serving_of(request: Request) -> Serving:
    """Return the server that a request came to."""
    serving: Serving = request.app.state.serving
    return serving


async def while_client_waits(request: Request, deadline: float, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; cancel it when the client leaves or the deadline passes.

    The request's body must have been read.

    Raises:
        ClientDisconnect: the client left.
        DeadlineExceeded: the deadline passed.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        timeout = max(0.0, deadline - time.monotonic())
        await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            serving_of(request).metrics.cancelled()
            raise ClientDisconnect
        wait_s = serving_of(request).execution.seconds_until_free()
        raise DeadlineExceeded("The request's deadline has passed.", wait_s)
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
