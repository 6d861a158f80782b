"""A handler that is called directly answers as it does through the framework, errors included."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import Response

from service.http.app import create_app
from service.http.direct import CallDirectly
from service.settings import Settings
from tests.support.images import encode, photograph

JPEG = encode(photograph(60, 80), "jpeg")
FORM = {"image": ("cat.jpg", JPEG, "image/jpeg")}
VARIES = {"server-timing", "x-request-id", "date"}


@pytest.fixture(scope="module")
def ways() -> Iterator[tuple[TestClient, TestClient]]:
    """The application, and the same one without the step that calls handlers directly."""
    direct = create_app(Settings(access_log=False))
    framework = create_app(Settings(access_log=False), direct.state.serving)
    framework.user_middleware = [step for step in framework.user_middleware if step.cls is not CallDirectly]
    with TestClient(direct) as client:
        wait_until_ready(client, direct)
        yield client, TestClient(framework)


def wait_until_ready(client: TestClient, app: FastAPI) -> None:
    while app.state.serving.state == "loading":
        client.get("/health/live")
    assert app.state.serving.state == "ready"


CALLS: list[tuple[str, str, dict[str, Any]]] = [
    (method, path + query, body)
    for path in ("/classify", "/introspect")
    for method, query, body in (
        ("POST", "", {"content": JPEG}),
        ("PUT", "", {"content": JPEG}),
        ("POST", "", {"files": FORM}),
        ("POST", "?top_k=2", {"content": JPEG}),
        ("POST", "?top_k=2&top_k=3", {"content": JPEG}),
        ("POST", "?top_k=", {"content": JPEG}),
        ("POST", "?top_k=0", {"content": JPEG}),
        ("POST", "?top_k=1e3", {"content": JPEG}),
        ("POST", "?top_k=100000", {"content": JPEG}),
        ("POST", "?top_k=x%20y&timeout_ms=z", {"content": JPEG}),
        ("POST", "?timeout_ms=60000", {"content": JPEG}),
        ("POST", "?timeout_ms=0", {"content": JPEG}),
        ("POST", "?model=tiny-imagenet-resnet18", {"content": JPEG}),
        ("POST", "?model=other", {"content": JPEG}),
        ("POST", "?model=", {"content": JPEG}),
        ("POST", "?colour=red", {"content": JPEG}),
        ("POST", "?%ff=%fe", {"content": JPEG}),
        ("POST", "?&&top_k=1&", {"content": JPEG}),
        ("POST", "", {"content": b""}),
        ("POST", "", {"content": b"no image"}),
        ("POST", "", {"content": JPEG[:300]}),
        ("POST", "", {"content": JPEG, "headers": {"Content-Type": "text/plain"}}),
        ("POST", "", {"content": JPEG, "headers": {"Content-Encoding": "gzip"}}),
        ("POST", "", {"files": {"picture": FORM["image"]}}),
        ("POST", "", {"content": JPEG, "headers": {"X-Request-Id": "mine"}}),
        ("OPTIONS", "", {}),
        ("GET", "", {}),
        ("HEAD", "", {}),
        ("DELETE", "", {}),
    )
]
CALLS += [
    ("POST", "/classify", {"files": [("image", FORM["image"])] * 3}),
    ("POST", "/classify", {"files": [("image", FORM["image"]), ("image", ("x", b"bad", "image/png"))]}),
    ("POST", "/introspect", {"files": [("image", FORM["image"])] * 2}),
    ("POST", "/introspect?maps=none&quantities=gain&blocks=stage2", {"content": JPEG}),
    ("POST", "/introspect?lesion=maybe", {"content": JPEG}),
    ("POST", "/introspect?lesion=1&maps=none", {"content": JPEG}),
    ("POST", "/introspect?alpha=nan", {"content": JPEG}),
    ("POST", "/introspect", {"content": JPEG, "headers": {"Accept": "text/html"}}),
]


@pytest.mark.parametrize(("method", "path", "body"), CALLS)
def test_both_ways_answer_alike(
    ways: tuple[TestClient, TestClient], method: str, path: str, body: dict[str, Any]
) -> None:
    direct, framework = (client.request(method, path, **body) for client in ways)
    assert direct.status_code == framework.status_code
    assert headers_of(direct) == headers_of(framework)
    assert without_durations(direct.text) == without_durations(framework.text)


def headers_of(response: Response) -> dict[str, str]:
    length = response.headers.get("content-length")
    varies = VARIES | ({"content-length"} if response.status_code == 200 and length else set())
    return {name: value for name, value in response.headers.items() if name not in varies}


def without_durations(text: str) -> str:
    return re.sub(r'"timing_ms":\{[^}]*\}', "", text)


def test_the_documentation_knows_what_is_called_directly(ways: tuple[TestClient, TestClient]) -> None:
    document = ways[0].get("/openapi.json").json()
    for path, model in (("/classify", "Classification"), ("/introspect", "Introspection")):
        operation = document["paths"][path]["post"]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema == {"$ref": f"#/components/schemas/{model}"}
        assert "top_k" in [parameter["name"] for parameter in operation["parameters"]]
