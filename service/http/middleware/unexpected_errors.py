"""Unexpected errors: a 500 with the request's id for the client, the traceback for the log."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import NotReady
from service.http.middleware.exchange import EXCHANGE
from service.http.problems import Problem, refuse
from service.telemetry.logs import request_ids

logger = logging.getLogger("residuum")


class UnexpectedErrors:
    """Answer an unexpected exception with 500, or with 503 where the server stops and waits no longer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:  # the server stops and waits no longer
            if scope["type"] != "http" or scope[EXCHANGE].status:
                raise
            await refuse(NotReady("The server is shutting down."), scope, receive, send)
        except Exception:
            if scope["type"] != "http":
                raise
            request_id = request_ids.get().get("request_id", "")
            logger.exception("request %s failed", request_id)
            if scope[EXCHANGE].status:
                raise  # half an answer is out: the connection must break, so that it does not look whole
            detail = "The server failed on this request."
            hint = f"It is in the server's log as {request_id}."
            members = {"request_id": request_id}
            problem = Problem(500, "internal", "Internal error", detail, hint, members=members)
            await problem.answer(scope, receive, send)
