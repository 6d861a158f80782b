"""Security headers on every answer, and CORS for the pages of allowed origins."""

from __future__ import annotations

import re

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from engines.settings import SettingsError
from service.settings import Settings

Headers = list[tuple[bytes, bytes]]

ALWAYS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
]
NO_STORE = (b"cache-control", b"no-store")

API_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# Swagger UI starts itself with an inline script, styles inline, and shows images of answers as blobs.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

# Request headers that pages of an allowed origin may send, and response headers that they may read.
REQUEST_HEADERS = (
    "Authorization",
    "Content-Type",
    "Inference-Header-Content-Length",
    "Traceparent",
    "X-API-Key",
    "X-Request-Id",
)
RESPONSE_HEADERS = ("Inference-Header-Content-Length", "Retry-After", "Server-Timing", "X-Request-Id")

_ORIGIN = re.compile(r"https?://[^/\s,*?#@]+")


def security_headers(cross_origin: bool) -> dict[str, Headers]:
    """Return what every answer gets, by the `browser` of its policy.

    Args:
        cross_origin: whether pages of other origins may read answers (CORS).
    """
    return {
        "api": api_headers(cross_origin),
        "docs": [*_headers(DOCS_POLICY, cross_origin), NO_STORE],
        "page": _headers(PAGE_POLICY, cross_origin),
    }


def api_headers(cross_origin: bool) -> Headers:
    """Return the security headers of answers that are not pages."""
    return [*_headers(API_POLICY, cross_origin), NO_STORE]


def _headers(policy: str, cross_origin: bool) -> Headers:
    resource_policy = b"cross-origin" if cross_origin else b"same-origin"
    return [
        *ALWAYS,
        (b"cross-origin-resource-policy", resource_policy),
        (b"content-security-policy", policy.encode()),
    ]


def cors(settings: Settings) -> list[Middleware]:
    """Return the step for the application's list; an empty list unless origins are allowed.

    Credentials such as cookies are not allowed, because the server uses none.

    Raises:
        SettingsError: an entry is not an origin, so that it would never match.
    """
    for origin in settings.cors_origin:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"--cors-origin {origin}: an origin is a scheme, a host and perhaps a port, such as "
                "https://example.org:8443, without a path; or * for every page in the world"
            )
    if not settings.cors_origin:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=("GET", "HEAD", "POST", "PUT"),
            allow_headers=REQUEST_HEADERS,
            expose_headers=RESPONSE_HEADERS,
        )
    ]
