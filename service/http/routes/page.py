"""GET / and /static/...: the files of the page that shows what the blocks did. It is a client of the API."""

from __future__ import annotations

import mimetypes
from dataclasses import replace
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import StaticFiles

from service.http.policy import OPEN, follows

router = APIRouter(include_in_schema=False)

# Browsers run modules of this type only, and the tables of some systems have another.
mimetypes.add_type("text/javascript", ".js")

PAGE = replace(OPEN, browser="page")
FILES = StaticFiles(directory=Path(__file__).resolve().parents[2] / "static")


@router.get("/")
@follows(PAGE)
async def page(request: Request) -> Response:
    return await _file("index.html", request)


@router.get("/static/{path:path}")
@follows(PAGE)
async def static(path: str, request: Request) -> Response:
    """A route and no mount, so that it allows GET alone and has one name in the metrics."""
    return await _file(path, request)


async def _file(path: str, request: Request) -> Response:
    """Return a file of the page; browsers keep it, but ask each time whether it changed.

    Raises:
        HTTPException: 404, there is no such file.
    """
    response = await FILES.get_response(path, request.scope)
    response.headers["Cache-Control"] = "no-cache"
    return response
