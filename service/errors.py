"""Every way in which a request can fail, and how that is said: problem+json (RFC 9457).

    Problem                          status  code
    ├── MalformedMultipart           400     malformed_multipart
    ├── MalformedRequest             400     malformed_request
    ├── InvalidInference             400     invalid_inference (under /v2)
    ├── Unauthorized                 401     unauthorized
    ├── Forbidden                    403     forbidden
    ├── NotFound                     404     not_found
    │   └── UnknownModel             404     unknown_model
    ├── MethodNotAllowed             405     method_not_allowed
    ├── NotAcceptable                406     not_acceptable
    ├── RequestTimeout               408     request_timeout
    ├── LoadRefused                  409     load_refused
    ├── TooManyBytes                 413     too_many_bytes
    ├── UnsupportedMediaType         415     unsupported_media_type
    ├── BadImage                     422     empty_body, unsupported_image, ...: that of the ImageError
    ├── InvalidParameter             422     invalid_parameter
    ├── InvalidPart                  422     invalid_part
    ├── TooManyImages                422     too_many_images
    ├── RateLimited                  429     rate_limited
    ├── HeadTooLarge                 431     head_too_large
    ├── Internal                     500     internal
    ├── OtherProblem                 500     http_error: any other status, by instance
    └── Unavailable                  503
        ├── NotReady                 503     not_ready
        ├── Overloaded               503     overloaded
        ├── DeadlineExceeded         503     deadline
        └── EngineFailed             503     engine_failed

Status, code and title live on the class, so raising one is all that a route does; error_handlers.py turns it
into the response. This module knows nothing of models or batches.
"""

from __future__ import annotations

from http import HTTPStatus
from math import ceil
from typing import Any, ClassVar

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from artifact.errors import ResiduumError

MEDIA_TYPE = "application/problem+json"
OIP_PREFIX = "/v2"  # the Open Inference Protocol, whose clients read {"error": "..."}
TYPE_PREFIX = "urn:residuum:problem:"


class Problem(ResiduumError):
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

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with it, and leave its code where the log finds it."""
        scope.setdefault("state", {})["problem"] = self.code
        await self.response(scope["path"])(scope, receive, send)

    def response(self, path: str) -> Response:
        """The answer to a request for `path`: under /v2 in the Open Inference Protocol's own form."""
        if path == OIP_PREFIX or path.startswith(OIP_PREFIX + "/"):
            error = " ".join(filter(None, (self.detail, self.hint)))
            return JSONResponse({"error": error}, self.status, self.headers)
        return JSONResponse(self.document(), self.status, self.headers, MEDIA_TYPE)


class MalformedMultipart(Problem):
    status, code, title = 400, "malformed_multipart", "Malformed multipart body"


class MalformedRequest(Problem):
    status, code, title = 400, "malformed_request", "Malformed request"


class InvalidInference(Problem):
    """An inference request of the Open Inference Protocol that does not make sense."""

    status, code, title = 400, "invalid_inference", "Invalid inference request"


class Unauthorized(Problem):
    status, code, title = 401, "unauthorized", "Unauthorized"

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "Forbidden"


class NotFound(Problem):
    status, code, title = 404, "not_found", "Not found"


class UnknownModel(NotFound):
    code, title = "unknown_model", "Unknown model"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method_not_allowed", "Method not allowed"


class NotAcceptable(Problem):
    status, code, title = 406, "not_acceptable", "Not acceptable"


class RequestTimeout(Problem):
    """The client took too long to send; the connection is closed."""

    status, code, title = 408, "request_timeout", "Request timeout"

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint, headers={"Connection": "close"})


class LoadRefused(Problem):
    """A model cannot be loaded or unloaded; what was served before is served on."""

    status, code, title = 409, "load_refused", "Load refused"


class TooManyBytes(Problem):
    """What still comes is not read; the connection is closed."""

    status, code, title = 413, "too_many_bytes", "Too many bytes"

    def __init__(self, detail: str, hint: str = "", **members: Any) -> None:
        super().__init__(detail, hint, headers={"Connection": "close"}, **members)


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class BadImage(Problem):
    """The image cannot be used; `code` says why, in the words of artifact.preprocess.ImageError."""

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


class RateLimited(Problem):
    status, code, title = 429, "rate_limited", "Too many requests"

    def __init__(self, detail: str, retry_after_s: float) -> None:
        super().__init__(detail, headers={"Retry-After": str(max(1, ceil(retry_after_s)))})


class HeadTooLarge(Problem):
    status, code, title = 431, "head_too_large", "Head too large"


class Internal(Problem):
    status, code, title = 500, "internal", "Internal error"


class OtherProblem(Problem):
    """What the framework itself refuses, by its status."""

    code = "http_error"

    def __init__(self, status: int, detail: str, headers: dict[str, str]) -> None:
        super().__init__(detail, headers=headers)
        self.status = status  # type: ignore[misc]  # the only one whose class does not know it
        self.title = HTTPStatus(status).phrase


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


class EngineFailed(Unavailable):
    """The engine failed on the batch, or hangs; it is checked, and rebuilt where it is broken."""

    code, title = "engine_failed", "Engine failed"
