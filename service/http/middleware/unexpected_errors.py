"""Unexpected errors: a 500 with the request's id for the client, the traceback for the log."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import NotReady
from service.http.problems import Problem, refuse
from service.telemetry.logs import request_ids

logger = logging.getLogger("residuum")


class UnexpectedErrors:
    """Answer an unexpected exception with 500, or with 503 where the server stops and waits no longer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def note_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, note_start)
        except asyncio.CancelledError:  # the server stops and waits no longer
            if started or scope["type"] != "http":
                raise
            await refuse(NotReady("The server is shutting down."), scope, receive, send)
        except Exception:
            if scope["type"] != "http":
                raise
            request_id = request_ids.get().get("request_id", "")
            logger.exception("request %s failed", request_id)
            if started:
                raise  # half an answer is out: the connection must break, so that it does not look whole
            detail = "The server failed on this request."
            hint = f"It is in the server's log as {request_id}."
            members = {"request_id": request_id}
            problem = Problem(500, "internal", "Internal error", detail, hint, members=members)
            await problem.answer(scope, receive, send)
