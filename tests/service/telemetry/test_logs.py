"""Log lines and the access log: their form, their ids, and what a client cannot do to them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse
from starlette.testclient import TestClient

from service.http.middleware.exchanges import Exchanges
from service.http.middleware.request_log import RequestLog, parse_traceparent
from service.http.middleware.security import security_headers
from service.http.middleware.unexpected_errors import UnexpectedErrors
from service.http.policy import RouteTable
from service.telemetry.logs import JsonFormatter, TextFormatter, request_ids
from service.telemetry.metrics import Metrics
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


def record(message: str, *arguments: object, **more: Any) -> logging.LogRecord:
    return logging.getLogger("residuum").makeRecord(
        "residuum", logging.INFO, __file__, 1, message, arguments, more.pop("exc_info", None), extra=more
    )


# The form of a line


def test_a_json_line() -> None:
    line = record("loaded %s", "a\nb", fields={"status": 200, "path": object})
    line.created = 1_795_258_800.25
    assert json.loads(JsonFormatter().format(line)) == {
        "time": "2026-11-21T11:00:00.250Z",
        "level": "INFO",
        "logger": "residuum",
        "message": "loaded a\nb",
        "status": 200,
        "path": "<class 'object'>",
    }


def test_an_exception_is_a_field_of_one_line() -> None:
    try:
        raise ValueError("what\nhappened")
    except ValueError:
        text = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in text
    exception = json.loads(text)["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("ValueError: what\nhappened")


def test_a_text_line_has_the_request_it_belongs_to() -> None:
    outside = TextFormatter().format(record("hello"))
    token = request_ids.set({"request_id": "abc"})
    inside = TextFormatter().format(record("hello"))
    request_ids.reset(token)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO hello", outside)
    assert inside.endswith("INFO hello [abc]")


# https://www.w3.org/TR/trace-context/#traceparent-header


@pytest.mark.parametrize(
    "header",
    [TRACEPARENT, f"00-{TRACE_ID}-{SPAN_ID}-00", f"cc-{TRACE_ID}-{SPAN_ID}-01-what-the-future-brings"],
)
def test_a_trace_context(header: str) -> None:
    assert parse_traceparent(header.encode()) == {"trace_id": TRACE_ID, "span_id": SPAN_ID}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
        f"cc-{TRACE_ID}-{SPAN_ID}-01.more",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID[:-1]}g-{SPAN_ID}-01",
        f"00-{TRACE_ID[:-1]}-{SPAN_ID}-01",
    ],
)
def test_an_invalid_trace_context_is_none(header: str) -> None:
    assert parse_traceparent(header.encode()) == {}


# Around a request


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    ours = logging.getLogger("residuum")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield stream
    ours.removeHandler(handler)
    ours.setLevel(level)


def parsed(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def app(metrics: Metrics) -> FastAPI:
    app = FastAPI()
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(
        Exchanges, RouteTable(), RequestLog(metrics, True, None), security_headers(False), bool
    )
    log = logging.getLogger("residuum")

    @app.get("/hello/{name}")
    async def hello(name: str) -> str:
        log.info("before")
        await asyncio.sleep(0)
        await asyncio.to_thread(log.info, "in a thread")
        return name

    @app.get("/fail")
    def fail() -> None:
        raise ZeroDivisionError

    @app.get("/break-off")
    def break_off() -> StreamingResponse:
        def half() -> Iterator[bytes]:
            yield b"half"
            raise ZeroDivisionError

        return StreamingResponse(half())

    @app.get("/refused")
    def refused(request: Request) -> Response:
        request.state.model, request.state.problem = "a", "overloaded"
        return Response(status_code=503)

    return app


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def test_concurrent_requests_keep_their_ids_apart(app: FastAPI, lines: io.StringIO) -> None:
    names = [f"request-{number}" for number in range(20)]

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

            async def ask(name: str) -> httpx.Response:
                response = await client.get(f"/hello/{name}", headers={"X-Request-Id": name})
                assert request_ids.get() == {}  # the application ran in this very context
                return response

            return await asyncio.gather(*map(ask, names))

    for name, response in zip(names, asyncio.run(ask_all()), strict=True):
        assert response.headers["X-Request-Id"] == name
        of_it = [line["message"] for line in parsed(lines) if line["request_id"] == name]
        assert of_it[:2] == ["before", "in a thread"]
        assert of_it[2].startswith(f"GET /hello/{name} 200")
        assert len(of_it) == 3


def test_the_unforeseen_is_logged_under_the_requests_id(client: TestClient, lines: io.StringIO) -> None:
    response = client.get("/fail", headers={"X-Request-Id": "my.own_id-1"})
    assert response.json()["request_id"] == response.headers["X-Request-Id"] == "my.own_id-1"
    error, access = parsed(lines)
    assert error["request_id"] == access["request_id"] == "my.own_id-1"
    assert "ZeroDivisionError" in error["exception"]
    assert (access["status"], access["problem"]) == (500, "internal")


def test_an_answer_that_breaks_off_is_logged(
    client: TestClient, lines: io.StringIO, metrics: Metrics
) -> None:
    client.get("/break-off")
    access = parsed(lines)[-1]
    assert (access["path"], access["status"], access["bytes"]) == ("/break-off", 200, 4)
    assert 'residuum_request_seconds_count{model="",route="/break-off",status="200"} 1.0' in (
        metrics.render()[0].decode()
    )


def test_a_refusal_is_logged_and_counted_by_its_code(
    client: TestClient, lines: io.StringIO, metrics: Metrics
) -> None:
    client.get("/refused")
    access = parsed(lines)[-1]
    assert (access["model"], access["problem"], access["status"]) == ("a", "overloaded", 503)
    assert 'residuum_refused_total{code="overloaded"} 1.0' in metrics.render()[0].decode()


@pytest.mark.parametrize("sent", ["", "a b", "ä", "a" * 129, "a/b", "<script>", "id\t"])
def test_an_id_that_could_do_harm_is_replaced(client: TestClient, sent: str) -> None:
    response = client.get("/hello/you", headers=[(b"X-Request-Id", sent.encode())])
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])


@pytest.mark.parametrize("sent", ["a", "A-Za.z_0", "a" * 128])
def test_any_other_id_is_kept(client: TestClient, sent: str) -> None:
    assert client.get("/nowhere", headers={"X-Request-Id": sent}).headers["X-Request-Id"] == sent


# The real server


def test_json_lines_of_a_server() -> None:
    image = encode(photograph(64, 64), "JPEG")
    with live_server(device="cpu", threads=1, log_format="json") as server:
        server.url = server.url.rstrip('"}')
        with httpx.Client(base_url=server.url, timeout=60) as client:
            traced = {"X-Request-Id": "mine", "traceparent": TRACEPARENT}
            answer = client.post("/classify?top_k=1", content=image, headers=traced)
            client.head("/models")
            for quiet in ("/health/live", "/health/ready", "/metrics"):
                assert client.get(quiet).status_code == 200
            client.get("/health/loud")
            client.get("/nowhere", headers={"traceparent": "nonsense"})
        forge(server, b"/%0a2026-11-21%20INFO%20forged?secret=1")
        forge(server, b"/" + b"a" * 5000)
    written = [json.loads(line) for line in server.log]
    access = [line for line in written if line["logger"] == "residuum.access"]
    assert [(line["method"], line["path"], line["status"]) for line in access] == [
        ("POST", "/classify", 200),
        ("HEAD", "/models", 200),
        ("GET", "/health/loud", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/%0a2026-11-21%20INFO%20forged", 404),
        ("GET", "/" + "a" * 511, 404),
    ]
    first = access[0]
    assert answer.status_code == 200
    assert (first["trace_id"], first["span_id"]) == (TRACE_ID, SPAN_ID)
    assert first["request_id"] == answer.headers["X-Request-Id"] == "mine"
    assert first["route"] == "/classify"
    assert first["model"] == answer.json()["model"]
    assert first["bytes"] == len(answer.content)
    assert first["client"] == "127.0.0.1"
    assert first["duration_ms"] > 0
    assert access[1]["bytes"] == 0
    assert len({line["request_id"] for line in access}) == len(access)
    assert not any("trace_id" in line for line in access[1:])
    assert not any("secret" in line for line in server.log)

    parts = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert list(parts) == ["decode", "queue", "inference", "total"]
    *stages, total = map(float, parts.values())
    assert sum(stages) <= total <= first["duration_ms"]


def test_no_access_log_but_errors() -> None:
    with live_server(device="cpu", threads=1, access_log=False) as server:
        answer = httpx.get(f"{server.url}/nowhere")
        assert answer.headers["X-Request-Id"]
        assert "Server-Timing" not in answer.headers
    assert not any("/nowhere" in line for line in server.log)


def forge(server: LiveServer, target: bytes) -> None:
    """Ask for a target that a client library would not send as it is."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b" 404 " in connection.recv(64)
        while connection.recv(4096):
            pass
