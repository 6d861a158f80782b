"""Who may call what: every route with every kind of key, and how keys are sent, exchanged and kept secret."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from shutil import copytree
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Message

from service.http.app import create_app
from service.settings import Settings
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server

IMAGE = encode(photograph(64, 64), "JPEG")
API_KEY, NEXT_KEY, ADMIN_KEY = "an-api-key", "the-next-api-key", "an-admin-key"

# Every call that anybody may make, and every one that needs an admin key. Whoever adds a route that belongs
# to one of the two adds it here; all others need an API key.
OPEN = {
    ("GET", path)
    for path in (
        "/",
        "/docs",
        "/docs/oauth2-redirect",
        "/openapi.json",
        "/static/{path:path}",
        "/static-offline-docs/{path}",
        "/metrics",
        "/health/live",
        "/health/ready",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{name}/ready",
        "/v2/models/{name}/versions/{version}/ready",
    )
}
ADMIN = {
    ("POST", "/models/{name}/load"),
    ("POST", "/models/{name}/unload"),
    ("POST", "/v2/repository/models/{name}/load"),
    ("POST", "/v2/repository/models/{name}/unload"),
}


def calls_of(app: FastAPI) -> set[tuple[str, str]]:
    """Method and path template of every route, in the OpenAPI document or not."""
    calls = set()
    left: list[Any] = list(app.routes)
    for route in left:
        if hasattr(route, "original_router"):  # what include_router makes
            left.extend(route.original_router.routes)
        elif hasattr(route, "methods"):
            calls |= {(method, route.path) for method in route.methods - {"HEAD"}}
        else:  # a mount
            calls.add(("GET", route.path + "/{path}"))
    return calls


def answer_of(app: FastAPI, method: str, path: str, key: str | None = None) -> int:
    """The status. Who is refused for his key must be so before his body, which is empty, is asked for."""
    sent: list[Message] = []
    num_asked = 0

    async def receive() -> Message:
        nonlocal num_asked
        num_asked += 1
        if num_asked > 1:
            await asyncio.Event().wait()  # the client stays
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"x-api-key", key.encode())] if key else []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("192.0.2.1", 1),
        "server": ("192.0.2.2", 80),
        "scheme": "http",
    }
    asyncio.run(app(scope, receive, send))
    status = int(sent[0]["status"])
    assert status not in (401, 403) or not num_asked
    return status


@pytest.fixture(scope="module")
def guarded() -> FastAPI:
    """The application with keys. It has loaded nothing: what gets past the keys is refused with 503."""
    return create_app(Settings(api_key=(API_KEY,), admin_key=(ADMIN_KEY,)))


def test_every_route_needs_what_it_should(guarded: FastAPI) -> None:
    calls = calls_of(guarded)
    assert calls >= OPEN | ADMIN
    assert len(calls) > len(OPEN | ADMIN)
    for method, template in sorted(calls):
        path = re.sub(r"\{.+?\}", "m", template.replace("{path}", "swagger-ui.css"))
        keys = (None, "wrong", API_KEY, ADMIN_KEY)
        refused = [answer_of(guarded, method, path, key) in (401, 403) for key in keys]
        if (method, template) in OPEN:
            wanted = [False, False, False, False]
        elif (method, template) in ADMIN:
            wanted = [True, True, True, False]
        else:
            wanted = [True, True, False, False]
        assert refused == wanted, (method, template)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"])
def test_only_asking_is_open(guarded: FastAPI, method: str) -> None:
    for _, template in OPEN:
        assert answer_of(guarded, method, template) == 401, template


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/models/",
        "//models",
        "/./models",
        "/health",
        "/health/../models",
        "/health/x/../../models",
        "/docs/../models",
        "/docs2",
        "/docs/x",
        "/health/other",
        "/static",
        "/metrics/",
        "/openapi.json/x",
        "/v2/health/../models/m",
        "/v2/models/ready",
        "/v2/models/a/b/ready",
        "/v2/models/m/infer/../ready",
        "/models/m/ready",
        "/V2/models/m",
        "/metrics\n",
        "",
    ],
)
def test_what_is_not_listed_is_closed(guarded: FastAPI, path: str) -> None:
    assert answer_of(guarded, "GET", path) == 401


@pytest.mark.parametrize(
    "path",
    [
        "/models/a/b/load",
        "/models/../x/unload",
        "/v2/repository/models/a/versions/1/load",
        "/models/a//load",
        "/models/m/unload\n",  # which the routes' own expressions would match
        "/v2/repository/models/m/load\n",
        "/models/m\nm/load",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
def test_whatever_looks_like_loading_needs_an_admin(guarded: FastAPI, method: str, path: str) -> None:
    assert answer_of(guarded, method, path, API_KEY) == 403
    assert answer_of(guarded, method, path, ADMIN_KEY) == 404


@pytest.mark.parametrize(
    "path", ["/health/live\n", "/models/m\n", "/models\n", "/models/\0", "/v2/models/\x7f"]
)
def test_a_path_with_a_control_character_is_none(guarded: FastAPI, path: str) -> None:
    assert answer_of(guarded, "GET", path, API_KEY) == 404


def test_without_api_keys_only_loading_is_closed() -> None:
    nobody, admins = create_app(Settings()), create_app(Settings(admin_key=(ADMIN_KEY,)))
    for method, path in (("GET", "/models"), ("POST", "/classify")):
        for key in (None, "whatever", ADMIN_KEY):
            assert answer_of(nobody, method, path, key) not in (401, 403)
            assert answer_of(admins, method, path, key) not in (401, 403)
    for method, template in ADMIN:
        path = template.replace("{name}", "m")
        assert [answer_of(nobody, method, path, key) for key in (None, "x", ADMIN_KEY)] == [403] * 3
        assert [answer_of(admins, method, path, key) for key in (None, "x")] == [401] * 2
        assert answer_of(admins, method, path, ADMIN_KEY) not in (401, 403)


def test_health_is_asked_by_any_harmless_method(guarded: FastAPI) -> None:
    """HAProxy asks with OPTIONS, others with HEAD."""
    for method in ("GET", "HEAD", "OPTIONS"):
        assert answer_of(guarded, method, "/health/live") in (200, 204)
        assert guarded.state.table.find(method, "/health/live").policy.access == "open"


# The real server with keys


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "api"
    file.write_text(f"{API_KEY}\n")
    return file


@pytest.fixture(scope="module")
def outside(embedded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that is not below the directory of artifacts, but beside it."""
    return Path(copytree(embedded, tmp_path_factory.mktemp("files") / "outside"))


@pytest.fixture(scope="module")
def server(key_file: Path, outside: Path) -> Iterator[LiveServer]:
    artifacts = outside.parent / "artifacts"
    artifacts.mkdir()
    with live_server(api_key_file=key_file, admin_key=ADMIN_KEY, artifacts=artifacts) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": API_KEY},
        {"X-API-Key": ADMIN_KEY},
        {"Authorization": f"Bearer {API_KEY}"},
        {"Authorization": f"bearer  {API_KEY}"},
        {"Authorization": "Basic bm9ib2R5Om5vdGhpbmc=", "X-API-Key": API_KEY},
        {"Authorization": "Bearer for-the-proxy", "X-API-Key": API_KEY},
    ],
)
def test_how_a_key_is_sent(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.post("/classify", content=IMAGE, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, "This call needs an API key."),
        ({"X-API-Key": ""}, "This call needs an API key; the key that came is none."),
        ({"X-API-Key": API_KEY[:-1]}, "This call needs an API key; the key that came is none."),
        ({"X-API-Key": API_KEY + "x"}, "This call needs an API key; the key that came is none."),
        ({"X-API-Key": "wrong", "Authorization": f"Bearer {API_KEY}"}, "This call needs an API key; the key"),
        ({"Authorization": API_KEY}, "This call needs an API key."),
        ({"Authorization": f"Basic {API_KEY}"}, "This call needs an API key."),
        ({"Cookie": f"X-API-Key={API_KEY}"}, "This call needs an API key."),
        ({"X-API-Key": "ü" * 10_000}, "This call needs an API key; the key that came is none."),
    ],
)
def test_no_key_or_a_wrong_one(client: httpx.Client, headers: dict[str, str], said: str) -> None:
    raw = {name: value.encode() for name, value in headers.items()}
    refused = client.post("/classify", content=IMAGE, headers=raw)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "unauthorized"
    assert refused.json()["detail"].startswith(said)
    under_v2 = client.get("/v2/models/x", headers=raw)
    assert under_v2.status_code == 401
    assert list(under_v2.json()) == ["error"]


def test_a_key_is_asked_for_before_the_body_comes(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 401"


def test_keys_are_exchanged_while_serving(client: httpx.Client, key_file: Path) -> None:
    def until(key: str, status: int) -> None:
        while client.get("/models", headers={"X-API-Key": key}).status_code != status:
            pass  # the test's own time limit ends it

    until(NEXT_KEY, 401)
    key_file.write_text(f"{API_KEY}\n{NEXT_KEY}\n")
    until(NEXT_KEY, 200)
    assert client.get("/models", headers={"X-API-Key": API_KEY}).status_code == 200
    key_file.write_text(f"{NEXT_KEY}\n")
    until(API_KEY, 401)
    assert client.get("/models", headers={"X-API-Key": NEXT_KEY}).status_code == 200
    key_file.write_text(f"{API_KEY}\n")
    until(API_KEY, 200)


def test_no_key_is_in_the_log(server: LiveServer, client: httpx.Client) -> None:
    for key in (API_KEY, "a-wrong-key"):
        client.get("/models", headers={"X-API-Key": key, "Authorization": f"Bearer {key}"})
        client.get("/models", params={"api_key": key})
    log = "".join(server.log)
    assert log
    digests = [hashlib.sha256(key.encode()).hexdigest() for key in (API_KEY, ADMIN_KEY)]
    for secret in (API_KEY, NEXT_KEY, ADMIN_KEY, "a-wrong-key", *digests):
        assert secret not in log


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "..%2Foutside",
        "%2e%2e%2foutside",
        "..%5coutside",
        "%2E%2E/outside",
        "....//outside",
        "outside%00",
        "{outside}",
        "%2Fetc%2Fpasswd",
        "~root",
        ".",
        "..",
    ],
)
def test_a_model_name_is_no_path(server: LiveServer, client: httpx.Client, outside: Path, name: str) -> None:
    name = name.replace("{outside}", str(outside).replace("/", "%2F"))
    headers = {"X-API-Key": ADMIN_KEY}
    before = client.get("/models", headers=headers).json()

    def call(method: str, path: str) -> tuple[int, bytes]:
        """As it is: httpx would resolve dots by itself."""
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        with closing(connection):
            connection.request(method, path, b"{}" if method == "POST" else None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    for method, path in (
        ("POST", f"/models/{name}/load"),
        ("POST", f"/models/{name}/unload"),
        ("POST", f"/v2/repository/models/{name}/load"),
        ("POST", f"/v2/repository/models/{name}/unload"),
        ("POST", f"/v2/models/{name}/infer"),
        ("GET", f"/models/{name}"),
        ("GET", f"/v2/models/{name}"),
        ("GET", f"/v2/models/{name}/config"),
        ("GET", f"/static-offline-docs/{name}"),
    ):
        status, body = call(method, path)
        assert 400 <= status < 500, (method, path, status, body)
        assert b"root:" not in body
    refused = client.post("/classify", content=IMAGE, headers=headers, params={"model": name})
    assert refused.status_code == 404
    assert client.get("/models", headers=headers).json() == before
