"""What can go wrong with a request.

    ResiduumError
    ├── MalformedRequest           the bytes received are not valid HTTP
    ├── MalformedMultipart
    ├── InvalidInference           an inference request of the Open Inference Protocol that makes no sense
    ├── Unauthorized
    ├── Forbidden
    ├── NotFound
    │   └── UnknownModel
    ├── NotAcceptable
    ├── RequestTimeout             the client took too long to send
    ├── LoadRefused                a model cannot be loaded or unloaded; what was served is served on
    ├── TooManyBytes               the rest of the body is not read
    ├── UnsupportedMediaType
    ├── ParameterError             a parameter that does not exist, or a value that it cannot have
    ├── InvalidPart
    ├── TooManyImages
    ├── HeadTooLarge
    ├── UnsupportedTransferCoding
    └── Unavailable                the same request may succeed later
        ├── RateLimited
        ├── NotReady
        ├── Overloaded
        └── DeadlineExceeded

Errors of the packages below reach a request too: `ImageError`, and those of the batcher.
`http/problems.py` has the table of what each becomes over HTTP; this module knows nothing of HTTP's statuses,
models and batches.
"""

from __future__ import annotations

from artifact.errors import ResiduumError, Unavailable


class MalformedRequest(ResiduumError): ...


class MalformedMultipart(ResiduumError): ...


class InvalidInference(ResiduumError): ...


class Unauthorized(ResiduumError): ...


class Forbidden(ResiduumError): ...


class NotFound(ResiduumError): ...


class UnknownModel(NotFound): ...


class NotAcceptable(ResiduumError): ...


class RequestTimeout(ResiduumError): ...


class LoadRefused(ResiduumError): ...


class TooManyBytes(ResiduumError): ...


class UnsupportedMediaType(ResiduumError): ...


class InvalidPart(ResiduumError): ...


class TooManyImages(ResiduumError): ...


class HeadTooLarge(ResiduumError): ...


class UnsupportedTransferCoding(ResiduumError): ...


class RateLimited(Unavailable): ...


class NotReady(Unavailable): ...


class Overloaded(Unavailable): ...


class DeadlineExceeded(Unavailable): ...
