"""Everything that fails is problem+json with a code, whoever raised it."""

from __future__ import annotations

import json
import logging

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from service import errors
from service.errors import Problem
from service.http.middleware.head_as_get import HeadAsGet
from service.http.middleware.request_log import RequestLog
from service.http.middleware.unexpected_errors import UnexpectedErrors
from service.http.problems import add_error_handlers
from service.telemetry.metrics import Metrics


def all_problems(base: type[Problem] = Problem) -> list[type[Problem]]:
    return [found for child in base.__subclasses__() for found in (child, *all_problems(child))]


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    add_error_handlers(app)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(RequestLog, Metrics(), access_log=False, tracer=None)
    app.add_middleware(HeadAsGet)

    @app.get("/fail")
    def fail() -> None:
        raise ZeroDivisionError("a secret")

    @app.get("/break-off")
    def break_off() -> StreamingResponse:
        def half() -> object:
            yield b"half"
            raise ZeroDivisionError("a secret")

        return StreamingResponse(half())  # type: ignore[arg-type]

    @app.get("/teapot")
    def teapot() -> None:
        raise HTTPException(418, "short and stout", {"X-Spout": "yes"})

    @app.get("/overloaded")
    def overloaded() -> None:
        raise errors.Overloaded("Full.", retry_after_s=2.1)

    @app.get("/number")
    def number(n: int) -> int:
        return n

    @app.post("/number")
    def post_number() -> None: ...

    return TestClient(app, raise_server_exceptions=False)


def test_the_tree_at_the_top_of_the_file_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for problem in all_problems():
        if problem.__module__ != errors.__name__:
            continue
        line = next(line for line in drawn.splitlines() if line.strip("│├└─ ").startswith(problem.__name__))
        assert str(problem.status) in line
        if problem not in (errors.BadImage, errors.Unavailable):
            assert problem.code in line


def test_a_document() -> None:
    problem = errors.InvalidParameter("top_k", "Too high.", "Lower it.")
    response = problem.response("/classify")
    assert response.status_code == 422
    assert response.media_type == "application/problem+json"
    assert json.loads(bytes(response.body)) == {
        "type": "urn:residuum:problem:invalid_parameter",
        "title": "Invalid parameter",
        "status": 422,
        "detail": "Too high.",
        "code": "invalid_parameter",
        "hint": "Lower it.",
        "parameter": "top_k",
    }


def test_the_unforeseen_is_a_500_with_an_id_that_the_log_has(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "residuum"):
        response = client.get("/fail")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["code"] == "internal"
    assert "secret" not in response.text
    assert document["request_id"] == response.headers["x-request-id"]
    assert document["request_id"] in caplog.text
    assert "ZeroDivisionError: a secret" in caplog.text


def test_an_answer_that_breaks_off_does_not_look_whole(client: TestClient) -> None:
    with pytest.raises(ZeroDivisionError):
        TestClient(client.app).get("/break-off")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/number", 405, "method_not_allowed"),
        ("GET", "/number?n=one", 422, "invalid_parameter"),
        ("GET", "/number", 422, "invalid_parameter"),
        ("GET", "/teapot", 418, "http_error"),
        ("GET", "/overloaded", 503, "overloaded"),
    ],
)
def test_every_failure_is_a_problem_document(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert {"type", "title", "status", "detail", "code"} <= set(document)
    assert (document["status"], document["code"]) == (status, code)


def test_headers(client: TestClient) -> None:
    assert client.get("/overloaded").headers["retry-after"] == "3"
    assert client.get("/teapot").headers["x-spout"] == "yes"
    assert client.delete("/number").headers["allow"] == "HEAD, OPTIONS, GET, POST"
    assert client.get("/number").json()["parameter"] == "n"


def test_options_and_head(client: TestClient) -> None:
    response = client.options("/number")
    assert (response.status_code, response.headers["allow"]) == (204, "HEAD, OPTIONS, GET, POST")
    assert client.head("/number?n=1").status_code == 200
    assert client.options("/nowhere").status_code == 404


def test_the_openapi_document_knows_the_problem_document(client: TestClient) -> None:
    assert "ProblemDocument" in client.get("/openapi.json").json()["components"]["schemas"]
