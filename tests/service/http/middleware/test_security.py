"""What browsers are told: on every answer, for /docs, and for pages of other origins."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from engines.settings import SettingsError
from service.http.middleware.security import cors
from service.settings import Settings
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server

IMAGE = encode(photograph(64, 64), "JPEG")
API_POLICY = "default-src 'none'; frame-ancestors 'none'"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(cors_origin="https://app.example,http://localhost:3000", api_key="key") as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/models", 401),
        ("POST", "/classify", 401),
        ("GET", "/health/live", 200),
        ("HEAD", "/health/live", 200),
        ("GET", "/openapi.json", 200),
        ("OPTIONS", "/health/live", 204),
        ("GET", "/v2/models/x", 401),
    ],
)
def test_headers_of_answers(client: httpx.Client, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    check_headers(answer)
    assert answer.headers["content-security-policy"] == API_POLICY
    assert answer.headers["cache-control"] == "no-store"


def test_headers_of_an_answer_to_what_is_no_request(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        head = b"".join(iter(lambda: connection.recv(65536), b"")).lower()
    for header in (b"x-content-type-options: nosniff", b"cache-control: no-store", API_POLICY.encode()):
        assert header in head


@pytest.mark.parametrize("path", ["/models/", "/docs/", "/health/live/", "/v2/", "/classify/"])
def test_a_slash_too_many_leads_nowhere(client: httpx.Client, path: str) -> None:
    """A redirect would name the host that the client named, to whoever shares a cache with it."""
    for method in ("GET", "POST"):
        answer = client.request(method, path, headers={"host": "evil.example", "X-API-Key": "key"})
        assert (answer.status_code, "location" in answer.headers) == (404, False)
        assert "evil" not in answer.text


def check_headers(answer: httpx.Response) -> None:
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"  # for this server has CORS
    assert "server" not in answer.headers
    assert len({name.lower() for name, _ in answer.headers.raw}) == len(answer.headers.raw)


def test_docs_may_load_what_they_need(client: httpx.Client) -> None:
    """The page runs its inline script and loads its own files, and its policy allows no other origin."""
    page = client.get("/docs")
    check_headers(page)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert re.search(r"<script>\s*\S", page.text)
    assert policy["script-src"] == "'self' 'unsafe-inline'"
    loaded = re.findall(r"""(?:src|href)="([^"]+)""", page.text)
    assert len(loaded) == 3
    for path in loaded:
        assert path.startswith("/static-offline-docs/")  # 'self'
        file = client.get(path)
        assert file.status_code == 200
        check_headers(file)
        assert "cache-control" not in file.headers  # a browser may keep it
    assert policy["connect-src"] == "'self'"
    assert "//" not in page.headers["content-security-policy"]


# Pages of other origins


def preflight(client: httpx.Client, origin: str, path: str = "/classify") -> httpx.Response:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-api-key, content-type",
    }
    return client.options(path, headers=asked)


@pytest.mark.parametrize("origin", ["https://app.example", "http://localhost:3000"])
def test_a_listed_origin(client: httpx.Client, origin: str) -> None:
    allowed = preflight(client, origin)  # and no browser sends a key with it
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in allowed.headers
    assert {"POST", "PUT"} <= set(allowed.headers["access-control-allow-methods"].split(", "))
    for headers, status in (({"X-API-Key": "key"}, 200), ({}, 401)):
        answer = client.post("/classify", content=IMAGE, headers={"Origin": origin, **headers})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == origin
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"Server-Timing", "Retry-After", "X-Request-Id"} <= set(exposed)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil.example", "http://app.example", "null"]
)
def test_another_origin(client: httpx.Client, origin: str) -> None:
    assert preflight(client, origin).status_code == 400
    assert "access-control-allow-origin" not in preflight(client, origin).headers
    answer = client.get("/health/live", headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers


def test_no_origin_is_listed_by_default() -> None:
    assert cors(Settings()) == []


@pytest.mark.parametrize(
    "origin", ["example.org", "https://example.org/", "https://*.example.org", "null", "**"]
)
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"^--cors-origin .*: an origin is a scheme, a host"):
        cors(Settings(cors_origin=(origin,)))
