"""GET / and /static/...: the files of the page that shows what the blocks did. It is a client of the API."""

from __future__ import annotations

import mimetypes
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

from introspection.catalogue import words
from introspection.document import to_json
from service.http.policy import OPEN, follows

router = APIRouter(include_in_schema=False)

# Browsers run modules of this type only, and the tables of some systems have another.
mimetypes.add_type("text/javascript", ".js")

PAGE = replace(OPEN, browser="page")
# A browser keeps the files, which have no version in their names, and asks each time whether they changed.
ASK_EACH_TIME = {"Cache-Control": "no-cache"}
QUANTITIES = to_json(words())
QUANTITIES_HEADERS = ASK_EACH_TIME | {"ETag": f'"{sha256(QUANTITIES).hexdigest()[:32]}"'}
FILES = StaticFiles(directory=Path(__file__).resolve().parents[2] / "static")


@router.get("/")
@follows(PAGE)
async def page(request: Request) -> Response:
    return await _file("index.html", request)


@router.get("/static/{path:path}")
@follows(PAGE)
async def static(path: str, request: Request) -> Response:
    """Serve a file. This is a route, not a mount, so that it allows GET only and has one name in the
    metrics.
    """
    return _quantities(request) if path == "quantities.json" else await _file(path, request)


def _quantities(request: Request) -> Response:
    """Return what every quantity is called and means, from the rows of introspection/quantities.py."""
    response = Response(QUANTITIES, media_type="application/json", headers=QUANTITIES_HEADERS)
    if FILES.is_not_modified(response.headers, request.headers):
        return NotModifiedResponse(response.headers)
    return response


async def _file(path: str, request: Request) -> Response:
    """Return a file of the page; browsers keep it, but ask each time whether it changed.

    Raises:
        HTTPException: 404, there is no such file.
    """
    response = await FILES.get_response(path, request.scope)
    response.headers.update(ASK_EACH_TIME)
    return response
