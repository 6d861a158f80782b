"""Every way in which a request can fail, and how that is said: problem+json (RFC 9457).

    Problem                          status  code
    ├── MalformedMultipart           400     malformed_multipart
    ├── NotFound                     404     not_found
    │   └── UnknownModel             404     unknown_model
    ├── MethodNotAllowed             405     method_not_allowed
    ├── NotAcceptable                406     not_acceptable
    ├── TooManyBytes                 413     too_many_bytes
    ├── UnsupportedMediaType         415     unsupported_media_type
    ├── BadImage                     422     empty_body, unsupported_image, ...: that of the ImageError
    ├── InvalidParameter             422     invalid_parameter
    ├── InvalidPart                  422     invalid_part
    ├── TooManyImages                422     too_many_images
    ├── Internal                     500     internal
    └── Unavailable                  503
        ├── NotReady                 503     not_ready
        ├── Overloaded               503     overloaded
        └── DeadlineExceeded         503     deadline

Status, code and title live on the class, so raising one is all that a route does; error_handlers.py turns it
into the response. This module knows nothing of models or batches.
"""

from __future__ import annotations

from http import HTTPStatus
from math import ceil
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response

from service.lingering import LingeringResponse

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:residuum:problem:"


class Problem(Exception):
    """A request failed; `members` are further members of the problem document, `headers` of the response."""

    status: ClassVar[int] = 500
    code: str = "internal"
    title: str = "Internal error"

    def __init__(
        self, detail: str, hint: str = "", headers: dict[str, str] | None = None, **members: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.headers = headers or {}
        self.members = members

    def document(self) -> dict[str, Any]:
        """The problem document."""
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.hint:
            document["hint"] = self.hint
        return document | self.members

    def response(self) -> Response:
        kind = LingeringResponse if self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else JSONResponse
        return kind(self.document(), self.status, headers=self.headers, media_type=MEDIA_TYPE)


class MalformedMultipart(Problem):
    status, code, title = 400, "malformed_multipart", "Malformed multipart body"


class NotFound(Problem):
    status, code, title = 404, "not_found", "Not found"


class UnknownModel(NotFound):
    code, title = "unknown_model", "Unknown model"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method_not_allowed", "Method not allowed"


class NotAcceptable(Problem):
    status, code, title = 406, "not_acceptable", "Not acceptable"


class TooManyBytes(Problem):
    status, code, title = 413, "too_many_bytes", "Too many bytes"


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class BadImage(Problem):
    """The image cannot be used; `code` says why, in the words of models.preprocess.ImageError."""

    status, title = 422, "Bad image"

    def __init__(self, code: str, detail: str, hint: str = "", **members: Any) -> None:
        super().__init__(detail, hint, **members)
        self.code = code


class InvalidParameter(Problem):
    """A query parameter that does not exist, or a value that it cannot have."""

    status, code, title = 422, "invalid_parameter", "Invalid parameter"

    def __init__(self, parameter: str, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint, parameter=parameter)


class InvalidPart(Problem):
    status, code, title = 422, "invalid_part", "Invalid part"


class TooManyImages(Problem):
    status, code, title = 422, "too_many_images", "Too many images"


class Internal(Problem):
    status, code, title = 500, "internal", "Internal error"


class Unavailable(Problem):
    """Try again later; `retry_after_s` becomes a Retry-After of whole seconds, at least one."""

    status = 503

    def __init__(self, detail: str, retry_after_s: float = 1.0) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, ceil(retry_after_s)))})


class NotReady(Unavailable):
    code, title = "not_ready", "Not ready"


class Overloaded(Unavailable):
    code, title = "overloaded", "Overloaded"


class DeadlineExceeded(Unavailable):
    code, title = "deadline", "Deadline exceeded"


# What every call that takes images may answer with.
IMAGE_PROBLEMS: tuple[type[Problem], ...] = (
    MalformedMultipart,
    UnknownModel,
    TooManyBytes,
    UnsupportedMediaType,
    BadImage,
    InvalidParameter,
    InvalidPart,
    TooManyImages,
    NotReady,
    Overloaded,
    DeadlineExceeded,
)


def problem_responses(*problems: type[Problem]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for what a route may raise, by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemDocument"}}}
        response = responses.setdefault(problem.status, {"description": problem.title, "content": content})
        if problem.title not in response["description"]:
            response["description"] += f"; {problem.title.lower()}"
    return responses
