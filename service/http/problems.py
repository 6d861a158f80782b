"""The table from error to status and code, and how an error is said: problem+json (RFC 9457).

Under /v2 an error has the form of the Open Inference Protocol, {"error": "..."}. An error that the table
does not list is a bug: it becomes a 500 in `middleware/unexpected_errors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from artifact.errors import ParameterError, ResiduumError, Unavailable
from artifact.image_bytes import ImageError, ImageTooLong
from service import errors
from service.batching.types import BatchFailed, Closed, DeadlineMissed, Paused, QueueFull

MEDIA_TYPE = "application/problem+json"
OIP_PREFIX = "/v2"
TYPE_PREFIX = "urn:residuum:problem:"
CLOSE = {"Connection": "close"}  # what the client still sends is not read


class Row(NamedTuple):
    """Status, code and words of an error.

    `detail` is said in place of the error's own words, which are for the log; `oip_status` is the status
    under /v2 where it is another one.
    """

    status: int
    code: str
    title: str
    detail: str = ""
    headers: Mapping[str, str] = {}
    oip_status: int | None = None


OWN = ""  # in place of a code: the error itself has it as `code`
ENGINE_FAILED = (503, "engine_failed", "Engine failed")

# Looked up along the error's classes, so that a row holds for derived errors without one of their own.
TABLE: dict[type[ResiduumError], Row] = {
    errors.MalformedRequest: Row(400, "malformed_request", "Malformed request"),
    errors.MalformedMultipart: Row(400, "malformed_multipart", "Malformed multipart body"),
    errors.InvalidInference: Row(400, "invalid_inference", "Invalid inference request"),
    errors.Unauthorized: Row(401, "unauthorized", "Unauthorized", headers={"WWW-Authenticate": "Bearer"}),
    errors.Forbidden: Row(403, "forbidden", "Forbidden"),
    errors.NotFound: Row(404, "not_found", "Not found"),
    errors.UnknownModel: Row(404, "unknown_model", "Unknown model"),
    errors.NotAcceptable: Row(406, "not_acceptable", "Not acceptable"),
    errors.RequestTimeout: Row(408, "request_timeout", "Request timeout", headers=CLOSE),
    errors.LoadRefused: Row(409, "load_refused", "Load refused"),
    errors.TooManyBytes: Row(413, "too_many_bytes", "Too many bytes", headers=CLOSE),
    ImageTooLong: Row(413, OWN, "Too many bytes", headers=CLOSE),
    errors.UnsupportedMediaType: Row(415, "unsupported_media_type", "Unsupported media type"),
    ImageError: Row(422, OWN, "Bad image", oip_status=400),  # in that protocol a bad request is a 400
    ParameterError: Row(422, "invalid_parameter", "Invalid parameter"),
    errors.InvalidPart: Row(422, "invalid_part", "Invalid part"),
    errors.TooManyImages: Row(422, "too_many_images", "Too many images"),
    errors.RateLimited: Row(429, "rate_limited", "Too many requests"),
    errors.HeadTooLarge: Row(431, "head_too_large", "Head too large"),
    errors.UnsupportedTransferCoding: Row(501, "unsupported_transfer_coding", "Unsupported transfer coding"),
    errors.NotReady: Row(503, "not_ready", "Not ready"),
    Closed: Row(503, "not_ready", "Not ready", "The server is shutting down."),
    errors.Overloaded: Row(503, "overloaded", "Overloaded"),
    QueueFull: Row(503, "overloaded", "Overloaded", "As many images are waiting as the server takes."),
    errors.DeadlineExceeded: Row(503, "deadline", "Deadline exceeded"),
    DeadlineMissed: Row(
        503, "deadline", "Deadline exceeded", "The images cannot be done before the request's deadline."
    ),
    Paused: Row(*ENGINE_FAILED, "The engine failed and is being rebuilt."),
    BatchFailed: Row(*ENGINE_FAILED, "The engine failed on the batch that the images were in."),
}

# What every call that takes images may answer with.
IMAGE_PROBLEMS: tuple[type[ResiduumError], ...] = (
    errors.MalformedMultipart,
    errors.UnknownModel,
    errors.TooManyBytes,
    errors.UnsupportedMediaType,
    ImageError,
    ParameterError,
    errors.InvalidPart,
    errors.TooManyImages,
    errors.Unauthorized,
    errors.RequestTimeout,
    errors.RateLimited,
    errors.NotReady,
    errors.Overloaded,
    errors.DeadlineExceeded,
    BatchFailed,
)


class Problem(NamedTuple):
    """An error as HTTP says it; `members` are further members of the problem document."""

    status: int
    code: str
    title: str
    detail: str
    hint: str = ""
    headers: Mapping[str, str] = {}
    members: Mapping[str, Any] = {}
    oip_status: int | None = None

    def document(self) -> dict[str, Any]:
        """Return the problem document."""
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.hint:
            document["hint"] = self.hint
        return document | dict(self.members)

    def response(self, path: str) -> Response:
        """Return the answer to a request for `path`."""
        if path == OIP_PREFIX or path.startswith(OIP_PREFIX + "/"):
            error = " ".join(filter(None, (self.detail, self.hint)))
            return JSONResponse({"error": error}, self.oip_status or self.status, self.headers)
        return JSONResponse(self.document(), self.status, self.headers, MEDIA_TYPE)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and leave the code where the log finds it."""
        scope.setdefault("state", {})["problem"] = self.code
        await self.response(scope["path"])(scope, receive, send)


def row_of(kind: type[BaseException]) -> Row | None:
    """Return what errors of a class become; None for a class that the table does not list."""
    return next(filter(None, map(TABLE.get, kind.__mro__)), None)


def problem_of(error: ResiduumError) -> Problem:
    """Return an error that the table lists as HTTP says it."""
    row = row_of(type(error))
    assert row is not None, f"{type(error).__name__} is not in the table"
    headers = dict(row.headers)
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(retry_after(error.retry_after_s))
    return Problem(
        row.status,
        row.code or code_of(error),
        row.title,
        row.detail or error.detail,
        error.hint,
        headers,
        error.members,
        row.oip_status,
    )


def retry_after(seconds: float) -> int:
    """Return the whole seconds that Retry-After says, at least one."""
    return max(1, ceil(seconds))


def code_of(error: ResiduumError) -> str:
    """Return an error's code, "" where it has none: for the command line and for programs."""
    row = row_of(type(error))
    return getattr(error, "code", "") if row is None else row.code or getattr(error, "code", "")


async def refuse(error: ResiduumError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error."""
    await problem_of(error).answer(scope, receive, send)


def problem_responses(*kinds: type[ResiduumError]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's `responses` for what a route may raise, by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        row = row_of(kind)
        assert row is not None, f"{kind.__name__} is not in the table"
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
        response = responses.setdefault(row.status, {"description": row.title, "content": content})
        if row.title not in response["description"]:
            response["description"] += f"; {row.title.lower()}"
    return responses
