"""The real server over real HTTP: answers, refusals, clients that leave, and a clean end."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifact.manifest import Manifest, read_manifest
from artifact.preprocess import preprocess
from engines.engine import EngineOptions
from engines.registry import engines_for, open_engine
from engines.settings import SettingsError
from service.http.app import create_app
from service.process.serve import serve
from service.settings import Settings
from tests.support.live import ROOT, LiveServer, live_server

MAX_IMAGE_BYTES = 300_000
FLAGS: dict[str, object] = {
    "device": "cpu",
    "threads": 1,
    "max_batch_size": 4,
    "max_wait_ms": 1,
    "max_image_bytes": MAX_IMAGE_BYTES,
    "max_request_bytes": 2 * MAX_IMAGE_BYTES,
    "max_image_pixels": 100_000,
    "max_images": 4,
}
CRLF = b"\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(**FLAGS) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def manifest(embedded: Path) -> Manifest:
    return read_manifest(embedded)


def photograph(seed: int, kind: str = "jpeg") -> bytes:
    """A distinct image, of a few coarse colours so that the network tells them apart."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((96, 80), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def expected(embedded: Path, manifest: Manifest) -> dict[int, NDArray[Any]]:
    """Seed of a photograph -> its logits [K], straight from the engine."""
    graph = manifest.graph("classify")
    assert graph is not None
    engine = open_engine("onnxruntime", embedded / graph.file, "fp32", EngineOptions("cpu", threads=1))
    pixels = [preprocess(photograph(seed), manifest.preprocessing).pixels for seed in range(24)]
    return {seed: engine.run({"images": image[None]})["logits"][0] for seed, image in enumerate(pixels)}


def logits_of(result: dict[str, Any]) -> NDArray[Any]:
    """The logits [K] of an answer that has all of them."""
    logits = np.empty(len(result["predictions"]))
    for prediction in result["predictions"]:
        logits[prediction["index"]] = prediction["logit"]
    return logits


def talk(server: LiveServer, sent: bytes) -> bytes:
    """What the server answers to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(sent)
        return b"".join(iter(lambda: connection.recv(65536), b""))


# Answers


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("content_type", [None, "image/jpeg", "application/octet-stream"])
def test_classify(client: httpx.Client, manifest: Manifest, method: str, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = client.request(method, "/classify", content=photograph(0), headers=headers)
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["model", "version", "precision", "engine", "results", "timing_ms"]
    assert body["model"] == manifest.name
    assert (body["precision"], body["engine"]) == ("fp32", "onnxruntime")
    [result] = body["results"]
    assert result["image"] == {"format": "jpeg", "width": 96, "height": 80}
    assert len(result["predictions"]) == 5
    best = result["predictions"][0]
    assert list(best) == ["index", "label", "wnid", "probability", "logit"]
    assert best["label"] == manifest.labels[best["index"]].label
    timing = body["timing_ms"]
    assert list(timing) == ["decode", "queue", "inference", "total"]
    assert timing["total"] >= timing["decode"] + timing["inference"]


def test_probabilities_and_logits(
    client: httpx.Client, manifest: Manifest, expected: dict[int, NDArray[Any]]
) -> None:
    answer = client.post("/classify", content=photograph(3), params={"top_k": manifest.num_classes})
    [result] = answer.json()["results"]
    probabilities = [prediction["probability"] for prediction in result["predictions"]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-9)
    assert probabilities == sorted(probabilities, reverse=True)
    np.testing.assert_allclose(logits_of(result), expected[3], atol=1e-3)


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "tiff", "bmp"])
def test_formats(client: httpx.Client, kind: str) -> None:
    answer = client.post("/classify", content=photograph(1, kind))
    assert answer.json()["results"][0]["image"]["format"] == kind


def test_several_images_in_order(
    client: httpx.Client, manifest: Manifest, expected: dict[int, NDArray[Any]]
) -> None:
    files = [("image", (f"{seed}.jpg", photograph(seed), "image/jpeg")) for seed in (5, 4, 3, 2)]
    answer = client.post("/classify", files=files, params={"top_k": manifest.num_classes})
    results = answer.json()["results"]
    assert len(results) == 4
    for seed, result in zip((5, 4, 3, 2), results, strict=True):
        np.testing.assert_allclose(logits_of(result), expected[seed], atol=1e-3)


def test_a_chunked_upload(client: httpx.Client) -> None:
    data = photograph(2)
    chunks = (data[start : start + 100] for start in range(0, len(data), 100))
    answer = client.post("/classify", content=chunks)
    assert answer.status_code == 200
    assert answer.json()["results"] == client.post("/classify", content=data).json()["results"]


def test_concurrent_clients_get_their_own_rows(
    client: httpx.Client, manifest: Manifest, expected: dict[int, NDArray[Any]]
) -> None:
    def ask(seed: int) -> NDArray[Any]:
        answer = client.post("/classify", content=photograph(seed), params={"top_k": manifest.num_classes})
        return logits_of(answer.json()["results"][0])

    with ThreadPoolExecutor(8) as clients:
        for seed, logits in enumerate(clients.map(ask, range(24))):
            np.testing.assert_allclose(logits, expected[seed], atol=1e-3)


def test_expect_100_continue(server: LiveServer) -> None:
    data = photograph(0)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(data)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_models(client: httpx.Client, manifest: Manifest) -> None:
    [summary] = client.get("/models").json()["models"]
    assert (summary["name"], summary["default"], summary["device"]) == (manifest.name, True, "cpu")
    detail = client.get(f"/models/{manifest.name}").json()
    for graph in detail["manifest"]["graphs"]:
        assert graph["engines"] == list(engines_for(graph["precision"]))
    assert Manifest.model_validate(detail["manifest"]) == manifest
    assert set(detail["batch_ms"]["classify"]) == {"1", "2", "4"}
    assert set(detail["graphs"]) == {"classify", "introspect", "attribute"}
    for graph in detail["graphs"].values():
        [trial] = [trial for trial in graph["trials"] if trial["chosen"]]
        assert (trial["engine"], trial["precision"]) == (graph["engine"], graph["precision"])


def test_health(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_not_ready_while_loading() -> None:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(create_app(Settings()))  # which does not start it
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return [
                await client.get("/health/live"),
                await client.get("/health/ready"),
                await client.get("/models"),
                await client.post("/classify", content=photograph(0)),
            ]

    live, *others = asyncio.run(ask())
    assert live.status_code == 200
    for answer in others:
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert int(answer.headers["retry-after"]) >= 1


# Refusals


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("POST", "/classify", b"", 422, "empty_body"),
        ("POST", "/classify", b"this is no image", 422, "unsupported_image"),
        ("POST", "/classify", photograph(0)[:-200], 422, "truncated_image"),
        ("POST", "/classify", b"x" * (MAX_IMAGE_BYTES + 1), 413, "too_many_bytes"),
        ("POST", "/classify?model=nix", photograph(0), 404, "unknown_model"),
        ("POST", "/classify?top_k=0", photograph(0), 422, "invalid_parameter"),
        ("POST", "/classify?top_k=100000", photograph(0), 422, "invalid_parameter"),
        ("POST", "/classify?top_k=many", photograph(0), 422, "invalid_parameter"),
        ("POST", "/classify?timeout_ms=0", photograph(0), 422, "invalid_parameter"),
        ("POST", "/classify?topk=1", photograph(0), 422, "invalid_parameter"),
        ("GET", "/classify", None, 405, "method_not_allowed"),
        ("DELETE", "/models", None, 405, "method_not_allowed"),
        ("GET", "/models/nix", None, 404, "unknown_model"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/nowhere/%ff%00", None, 404, "not_found"),
        ("GET", "/static-offline-docs/nix", None, 404, "not_found"),
    ],
)
def test_refusals(
    client: httpx.Client, method: str, path: str, content: bytes | None, status: int, code: str
) -> None:
    answer = client.request(method, path, content=content)
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["detail"]


def test_too_many_pixels(client: httpx.Client) -> None:
    file = io.BytesIO()
    Image.new("1", (400, 300)).save(file, "png")
    assert client.post("/classify", content=file.getvalue()).json()["code"] == "too_many_pixels"


def test_refusals_say_what_is_allowed(client: httpx.Client, manifest: Manifest) -> None:
    problem = client.post("/classify?top_k=999", content=photograph(0)).json()
    assert problem["parameter"] == "top_k"
    assert f"1 to {manifest.num_classes}" in problem["detail"]
    assert manifest.name in client.post("/classify?model=nix", content=photograph(0)).json()["hint"]
    answer = client.get("/classify")
    assert answer.headers["allow"] == "OPTIONS, POST, PUT"


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"]
)
def test_wrong_content_types(client: httpx.Client, content_type: str) -> None:
    answer = client.post("/classify", content=photograph(0), headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    assert "curl -T" in answer.json()["hint"]


def test_a_bad_image_among_several_is_named(client: httpx.Client) -> None:
    answer = client.post("/classify", files=[("image", photograph(0)), ("image", b"no image")])
    assert (answer.status_code, answer.json()["image_index"]) == (422, 1)
    answer = client.post("/classify", files=[("image", photograph(0)), ("picture", photograph(1))])
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_part")
    answer = client.post("/classify", files=[("image", photograph(0))] * 5)
    assert (answer.status_code, answer.json()["code"]) == (422, "too_many_images")


def test_a_deadline_that_cannot_be_met(client: httpx.Client) -> None:
    files = [("image", photograph(seed)) for seed in range(4)]
    answers = [client.post("/classify?timeout_ms=1", files=files) for _ in range(3)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (503, "deadline")
        assert int(answer.headers["retry-after"]) >= 1


def test_an_overloaded_server_refuses_at_once_and_goes_on() -> None:
    flags = FLAGS | {"max_batch_size": 1, "queue_capacity": 1, "max_images": 1}
    with live_server(**flags) as server, httpx.Client(base_url=server.url, timeout=60) as client:

        def ask(seed: int) -> httpx.Response:
            return client.post("/classify", content=photograph(seed))

        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(ask, range(40)))
        assert {answer.status_code for answer in answers} <= {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                assert answer.json()["code"] == "overloaded"
                assert int(answer.headers["retry-after"]) >= 1
        assert ask(0).status_code == 200


def test_a_length_over_the_limit_is_refused_before_any_of_it_comes(server: LiveServer) -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    answer = talk(server, head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(CRLF * 2)[2])["code"] == "too_many_bytes"
    answer = talk(server, head.replace(CRLF * 2, CRLF + b"Expect: 100-continue" + CRLF * 2))
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("form", [False, True])
def test_an_endless_upload_is_refused_and_not_read_on(client: httpx.Client, form: bool) -> None:
    """The server closes the connection long before 200 MB, and its answer still arrives."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        if form:
            yield b'--XyZ\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
        while sent < 200_000_000:
            sent += 100_000
            yield b"\0" * 100_000

    headers = {"content-type": "multipart/form-data; boundary=XyZ"} if form else {}
    answer = client.post("/classify", content=endless(), headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_many_bytes")
    assert sent < 100_000_000


# The rest of HTTP


def test_head_and_options(client: httpx.Client) -> None:
    answer = client.head("/health/live")
    assert (answer.status_code, answer.content) == (200, b"")
    assert client.options("/classify").headers["allow"] == "OPTIONS, POST, PUT"
    assert client.options("/models").headers["allow"] == "HEAD, OPTIONS, GET"


def test_the_documentation_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert "//" not in page.text.replace("<!--", "").split("<script>")[0]
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_openapi_tells_the_truth(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert {"/classify", "/models", "/models/{name}", "/health/live", "/health/ready"} <= set(
        document["paths"]
    )
    classify = document["paths"]["/classify"]["post"]
    assert {parameter["name"] for parameter in classify["parameters"]} == {"model", "top_k", "timeout_ms"}
    form = classify["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["image"]["items"]["format"] == "binary"
    for status in ("400", "404", "413", "415", "422", "503"):
        assert list(classify["responses"][status]["content"]) == ["application/problem+json"]
    assert "422" not in document["paths"]["/models/{name}"]["get"]["responses"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
    operations = [call["operationId"] for path in document["paths"].values() for call in path.values()]
    assert len(operations) == len(set(operations))


# Clients that leave, and the end


def test_clients_that_leave_harm_nobody(
    server: LiveServer, client: httpx.Client, manifest: Manifest, expected: dict[int, NDArray[Any]]
) -> None:
    data = photograph(7)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    for sent in (head, head + data[:50], head + data):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                connection.sendall(sent)
    answer = client.post("/classify", content=photograph(8), params={"top_k": manifest.num_classes})
    np.testing.assert_allclose(logits_of(answer.json()["results"][0]), expected[8], atol=1e-3)
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


def test_a_request_in_flight_is_finished_after_sigterm() -> None:
    data = photograph(0)
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    server = LiveServer(**FLAGS, drain_timeout=60)
    server.wait_until_ready()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head + data[:100])
        httpx.get(f"{server.url}/health/live")  # by now the server has begun to read that request
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/health/ready").status_code == 200:
            pass
        connection.sendall(data[100:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer.lower()
    assert server.wait() == 0, "".join(server.log)


def test_a_drain_is_not_waited_for_longer_than_allowed() -> None:
    server = LiveServer(**FLAGS, drain_timeout=0.2)
    server.wait_until_ready()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nbegin")
        httpx.get(f"{server.url}/health/live")
        assert server.stop() == 0, "".join(server.log)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"not_ready" in answer
    assert not [line for line in server.log if "Traceback" in line]


def test_sigterm_while_loading_ends_it_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = LiveServer(**FLAGS | {"max_batch_size": 512, "queue_capacity": 512, "port": port})
    while True:  # until it listens, which it does before it loads
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=60)
            break
        except httpx.ConnectError:
            assert server.process.poll() is None, "".join(server.log)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    assert server.stop() == 0, "".join(server.log)
    assert not [line for line in server.log if "Ready" in line]


def test_sigint_ends_it_too() -> None:
    server = LiveServer(**FLAGS)
    server.wait_until_ready()
    assert server.stop(signal.SIGINT) == 0, "".join(server.log)


def test_the_ready_line_names_model_engine_device_and_url(server: LiveServer, manifest: Manifest) -> None:
    [line] = [line for line in server.log if "Ready" in line]
    assert manifest.name in line
    assert "onnxruntime" in line
    assert "on cpu, 1 threads" in line
    assert line.rstrip().endswith(server.url)
    assert line == server.log[0]


def test_a_port_in_use_is_a_clear_error(server: LiveServer) -> None:
    with pytest.raises(SettingsError, match=rf"--port {server.port}: cannot listen there: Address "):
        serve(Settings(port=server.port))


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    code = (
        "from service.process.serve import serve; from service.settings import load_settings\n"
        f"serve(load_settings(port=0, model=['nix'], artifacts={str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "service.runtime.opening.LoadError: --model nix: there is no artifact"
    )
