"""Tracing: real spans to a real OTLP/HTTP receiver, and none of it where it is off or cannot be reached."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from engines.settings import SettingsError
from service.telemetry.tracing import make_tracer
from tests.support.images import encode, photograph
from tests.support.live import ROOT, live_server

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver:
    """A collector: keeps the spans that come to /v1/traces."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.resource: dict[str, Any] = {}
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                known = self.path == "/v1/traces"
                self.send_response(200 if known else 404)
                self.end_headers()
                if known:
                    receiver.take(ExportTraceServiceRequest.FromString(body))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, request: ExportTraceServiceRequest) -> None:
        for of_resource in request.resource_spans:
            self.resource |= attributes(of_resource.resource.attributes)
            for scope in of_resource.scope_spans:
                self.spans.extend(scope.spans)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def attributes(pairs: Any) -> dict[str, Any]:
    def value(pair: KeyValue) -> Any:
        return getattr(pair.value, pair.value.WhichOneof("value") or "string_value")

    return {pair.key: value(pair) for pair in pairs}


def test_a_request_is_a_span_with_its_stages(receiver: Receiver) -> None:
    image = encode(photograph(64, 64), "JPEG")
    context = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=1"}
    with live_server(device="cpu", threads=1, otlp_endpoint=receiver.url + "/", log_format="json") as server:
        server.url = server.url.rstrip('"}')
        with httpx.Client(base_url=server.url, timeout=60) as client:
            model = client.post("/classify", content=image, headers=context).json()["model"]
            assert client.get("/models/none").status_code == 404
            not_sampled = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"}
            assert client.get("/models", headers=not_sampled).status_code == 200
    spans = {span.name: span for span in receiver.spans}  # all are here: the server sent them before it ended
    assert set(spans) == {"POST /classify", "decode", "queue", "inference", "GET /models/{name}"}
    assert len(receiver.spans) == len(spans)

    request = spans["POST /classify"]
    assert request.kind == Span.SPAN_KIND_SERVER
    assert request.trace_id.hex() == TRACE_ID
    assert request.parent_span_id.hex() == SPAN_ID
    assert request.trace_state == "vendor=1"
    assert attributes(request.attributes) == {
        "http.request.method": "POST",
        "url.path": "/classify",
        "http.route": "/classify",
        "http.response.status_code": 200,
        "residuum.model": model,
        "residuum.batch_size": 1,
    }
    stages = [spans[name] for name in ("decode", "queue", "inference")]
    for stage in stages:
        assert stage.trace_id == request.trace_id
        assert stage.parent_span_id == request.span_id
    moments = [request.start_time_unix_nano]
    for stage in stages:
        moments += [stage.start_time_unix_nano, stage.end_time_unix_nano]
    moments.append(request.end_time_unix_nano)
    assert moments == sorted(moments)
    assert stages[0].end_time_unix_nano == stages[1].start_time_unix_nano
    assert stages[1].end_time_unix_nano == stages[2].start_time_unix_nano

    missed = spans["GET /models/{name}"]
    assert missed.trace_id != request.trace_id
    assert missed.parent_span_id == b""
    assert attributes(missed.attributes)["http.response.status_code"] == 404
    assert missed.status.code == Status.STATUS_CODE_UNSET  # it is the client's mistake
    assert receiver.resource["service.name"] == "residuum"
    access = next(line for line in server.log if "POST /classify" in line)
    assert f'"trace_id": "{TRACE_ID}", "span_id": "{request.span_id.hex()}"' in access


@pytest.mark.parametrize("listens", [False, True], ids=["refuses", "hangs"])
def test_a_collector_that_does_not_answer_hurts_nobody(listens: bool) -> None:
    image = encode(photograph(64, 64), "JPEG")
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            live_server(device="cpu", threads=1, otlp_endpoint=endpoint) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            for _ in range(200):  # more than the exporter sends at once
                assert client.post("/classify", content=image).status_code == 200
    complaints = [line for line in server.log if "OpenTelemetry" in line]
    assert len(complaints) <= 1
    assert any("last traces could not be sent" in line for line in server.log)
    assert "Traceback" not in "".join(server.log)


OFF = """
import sys
from service.http.app import create_app
assert create_app().state.tracer is None
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))])
"""


def test_off_it_costs_no_import() -> None:
    ran = subprocess.run([sys.executable, "-c", OFF], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "service.telemetry.opentelemetry", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(SettingsError, match=r"pip install 'residuum\[tracing\]'"):
        make_tracer("http://127.0.0.1:4318")


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4318",
        "localhost",
        "grpc://a:4317",
        "http://",
        "http://a:port",
        "http://[::1",
        "a:secret@b:4318",
        "",
    ],
)
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="--otlp-endpoint") as refused:
        make_tracer(endpoint)
    assert "secret" not in str(refused.value)
