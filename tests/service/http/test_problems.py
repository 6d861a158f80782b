"""Everything that fails is problem+json with a code, whoever raised it."""

from __future__ import annotations

import json
import logging
from itertools import combinations

import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from artifact.errors import ParameterError, ResiduumError
from artifact.image_bytes import ImageError, ImageTooLong
from service import errors
from service.batching import types
from service.http.error_handlers import add_error_handlers
from service.http.middleware.exchanges import Exchanges
from service.http.middleware.request_log import RequestLog
from service.http.middleware.security import security_headers
from service.http.middleware.unexpected_errors import UnexpectedErrors
from service.http.policy import RouteTable
from service.http.problems import TABLE, code_of, problem_of, row_of
from service.telemetry.metrics import Metrics


def all_errors(base: type[ResiduumError] = ResiduumError) -> list[type[ResiduumError]]:
    return [found for child in base.__subclasses__() for found in (child, *all_errors(child))]


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    add_error_handlers(app)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(
        Exchanges, RouteTable(), RequestLog(Metrics(), False, None), security_headers(False), bool
    )

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
    lines = [line.strip("│├└─ ").split(" ")[0] for line in (errors.__doc__ or "").splitlines()]
    drawn = [line for line in lines if isinstance(getattr(errors, line, None), type)]
    there = [kind.__name__ for kind in all_errors() if kind.__module__ == errors.__name__]
    assert sorted(drawn) == sorted([*there, "ResiduumError", "Unavailable"])


def test_every_error_of_a_request_has_a_row_and_a_code_one_status() -> None:
    for kind in all_errors():
        if kind.__module__ in (errors.__name__, types.__name__):
            assert kind in TABLE, kind
    for row, other in combinations(TABLE.values(), 2):
        if row.code and row.code == other.code:
            assert row[:3] == other[:3]


def test_a_derived_error_has_its_bases_row() -> None:
    class Odd(errors.UnknownModel): ...

    assert row_of(Odd) is TABLE[errors.UnknownModel]
    assert row_of(ResiduumError) is None
    assert code_of(Odd("There is none.")) == "unknown_model"
    assert code_of(ImageError("truncated_image", "It ends too early.")) == "truncated_image"
    assert code_of(ResiduumError("Something else.")) == ""


def test_a_document() -> None:
    problem = problem_of(ParameterError("top_k", "Too high.", "Lower it."))
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


@pytest.mark.parametrize(
    ("error", "status", "oip_status", "code", "detail"),
    [
        (ImageError("truncated_image", "It ends too early."), 422, 400, "truncated_image", "It ends too"),
        (ImageTooLong("too_many_bytes", "It is too long."), 413, 413, "too_many_bytes", "It is too long."),
        (ParameterError("blocks", "None.", "Some."), 422, 422, "invalid_parameter", "None."),
        (types.QueueFull(1.5), 503, 503, "overloaded", "As many images are waiting as the server takes."),
        (types.DeadlineMissed(1.5), 503, 503, "deadline", "The images cannot be done before the request's"),
        (types.BatchFailed("a secret"), 503, 503, "engine_failed", "The engine failed on the batch that"),
        (types.Paused("a secret"), 503, 503, "engine_failed", "The engine failed and is being rebuilt."),
        (types.Closed("a secret"), 503, 503, "not_ready", "The server is shutting down."),
    ],
)
def test_errors_of_the_packages_below(
    error: ResiduumError, status: int, oip_status: int, code: str, detail: str
) -> None:
    problem = problem_of(error)
    assert problem.response("/classify").status_code == problem.document()["status"] == status
    assert problem.response("/v2/models/m/infer").status_code == oip_status
    assert problem.code == code
    assert problem.detail.startswith(detail)


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
