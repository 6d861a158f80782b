"""What breaks beside, below and in front of the server: disks, clocks, engines, clients."""

from __future__ import annotations

import ast
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from artifact.manifest import Precision
from engines.engine import Engine, EngineError, EngineInfo, EngineName, EngineOptions
from engines.registry import open_engine
from service.process.serve import serve
from service.runtime import opening
from service.settings import load_settings
from tests.service.telemetry.test_metrics import read, value
from tests.support.images import encode, photograph
from tests.support.live import ROOT, SERVE, LiveServer, live_server
from tests.support.workshop import expected_logits

FLAGS: dict[str, object] = {"device": "cpu", "threads": 1, "max_batch_size": 4, "access_log": False}
NUM_IMAGES = 48
IMAGES = [encode(photograph(40, 36, seed), "PNG") for seed in range(NUM_IMAGES)]
TOLERANCE = 2e-3

Outputs = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def expected(artifact: Path) -> NDArray[Any]:
    """The logits of each of IMAGES, [N, K]; no two are alike."""
    logits_NK = expected_logits(artifact, IMAGES)
    apart_NN = np.abs(logits_NK[:, None] - logits_NK).max(axis=2) + np.eye(NUM_IMAGES)
    assert apart_NN.min() > 10 * TOLERANCE
    return logits_NK


def check_results(results: list[dict[str, Any]], numbers: list[int], expected: NDArray[Any]) -> None:
    """Each result is that of its own image."""
    assert len(results) == len(numbers)
    for result, number in zip(results, numbers, strict=True):
        logits = np.empty(expected.shape[1])
        for prediction in result["predictions"]:
            logits[prediction["index"]] = prediction["logit"]
        np.testing.assert_allclose(logits, expected[number], atol=TOLERANCE)


def ask_all(server: LiveServer, expected: NDArray[Any]) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for number in range(0, NUM_IMAGES, 4):
            answer = client.post("/classify?top_k=10", content=IMAGES[number])
            assert answer.status_code == 200, answer.text
            check_results(answer.json()["results"], [number], expected)


# The disk


def test_a_full_disk_keeps_nobody_from_being_served(
    artifact: Path, expected: NDArray[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file can be written, neither what was measured at load nor what a client sends."""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); "
    monkeypatch.setattr("tests.support.live.SERVE", full + SERVE)
    flags = FLAGS | {"threads": 2, "admin_key": "boss", "engine_cache": tmp_path / "cache"}
    with live_server(model=artifact, **flags) as server:
        assert any("The choice of engines is not stored: " in line for line in server.log)
        ask_all(server, expected)
        large = encode(photograph(1500, 1000), "BMP")
        files = [("image", large)] * 3
        assert httpx.post(f"{server.url}/classify", files=files, timeout=60).status_code == 200
        png = {"accept": "image/png"}
        answer = httpx.post(f"{server.url}/introspect", content=large, headers=png, timeout=60)
        assert answer.content.startswith(b"\x89PNG")
        key = {"x-api-key": "boss"}
        assert httpx.post(f"{server.url}/models/resnet20/load", headers=key, timeout=60).status_code == 200
        ask_all(server, expected)
        assert not any("Traceback" in line for line in server.log)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# The clock

WALL_CLOCK = {
    "telemetry/metrics.py: time.time_ns",  # the protocol wants to know when the last inference was
    "telemetry/opentelemetry.py: time.time_ns",  # when a trace began: spans of other machines must fit
}
READS_IT = {
    *(f"time.{name}" for name in ("time", "time_ns", "ctime", "localtime", "gmtime", "asctime")),
    *(f"{kind}.{name}" for kind in ("datetime", "date") for name in ("now", "utcnow", "today")),
}


def test_nothing_is_measured_by_a_clock_that_may_jump() -> None:
    found = set()
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            elif isinstance(node, ast.ImportFrom) and node.module == "time":
                names = [f"time.{alias.name}" for alias in node.names]
            else:
                continue
            found |= {f"{path.relative_to(ROOT / 'service')}: {name}" for name in names if name in READS_IT}
    assert found == WALL_CLOCK


def serve_while_the_clock_jumps() -> None:
    """Each time that anybody looks at the wall clock, it is another year."""
    chance = random.Random(0)
    now = time.time_ns

    def jumped_ns() -> int:
        return now() + chance.randrange(-30, 30) * 365 * 86_400 * 10**9

    time.time_ns = jumped_ns
    time.time = lambda: jumped_ns() / 1e9
    serve(load_settings())


def test_a_clock_that_jumps_delays_and_refuses_nobody(
    artifact: Path, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"from {__name__} import serve_while_the_clock_jumps as serve; serve()"
    monkeypatch.setattr("tests.support.live.SERVE", own)
    settings = dict(
        check_interval=0.1, hang_timeout=5, rate_limit=10_000, watch=True, artifacts=artifact.parent
    )
    with live_server(model=artifact, **FLAGS, **settings) as server:
        ask_all(server, expected)
        text = httpx.get(f"{server.url}/metrics").text
        assert value(text, "residuum_ready") == 1
        assert not value(text, "residuum_failed_batches_total", model="resnet20", graph="classify")
        assert not [name for name in read(text) if name[0] == "residuum_refused_total"]


# Engines that fail, and clients that leave


class Unreliable:
    """A real engine that fails, hangs and breaks by chance, but hardly ever while it is warmed up."""

    chance = random.Random(5)
    lock = threading.Lock()

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.broken = False
        self.golden: NDArray[Any] | None = None

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
        if self.golden is None:
            self.golden = inputs["images"][0]
        elif self.broken:
            raise EngineError("broken for good")
        elif not np.array_equal(inputs["images"][0], self.golden):
            with self.lock:
                chance = self.chance.random()
            if chance < 0.01:
                self.broken = True
                raise EngineError("an illegal memory access was encountered")
            if chance < 0.02:
                threading.Event().wait(3)  # longer than hang_timeout; then it comes back, and answers wrong
                return {name: np.zeros_like(array) for name, array in self.engine.run(inputs).items()}
            if chance < 0.10:
                raise ValueError("this time only")
        return self.engine.run(inputs)

    def close(self) -> None:
        self.engine.close()


def serve_unreliably() -> None:
    def opened(name: EngineName, graph: Path, precision: Precision, options: EngineOptions) -> Engine:
        return Unreliable(open_engine(name, graph, precision, options))

    opening.open_engine = opened
    serve(load_settings())


class Client:
    """Asks for one or several images at a time, and often leaves before the answer."""

    def __init__(self, server: LiveServer, expected: NDArray[Any], seed: int) -> None:
        self.url = server.url
        self.address = ("127.0.0.1", server.port)
        self.expected = expected
        self.chance = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def ask(self, times: int) -> Counter[str]:
        for _ in range(times):
            numbers = self.chance.choices(range(NUM_IMAGES), k=self.chance.choice((1, 1, 1, 2, 5)))
            outcome = self._ask(numbers)
            self.outcomes[outcome] += 1
            if outcome == "engine_failed":
                wait_until_ready(self.url)
        return self.outcomes

    def _ask(self, numbers: list[int]) -> str:
        files = [("image", IMAGES[number]) for number in numbers]
        request = httpx.Request("POST", "http://x/classify?top_k=10", files=files)
        head = b"".join(b"%b: %b\r\n" % header for header in request.headers.raw)
        sent = b"POST /classify?top_k=10 HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n" + request.read()
        with socket.create_connection(self.address, timeout=60) as connection:
            kind = self.chance.randrange(5)
            if kind == 0:
                connection.sendall(sent[: self.chance.randrange(len(sent))])
                return "left while sending"
            connection.sendall(sent)
            if kind == 1:
                if self.chance.random() < 0.5:
                    connection.shutdown(socket.SHUT_WR)
                return "left while waiting"
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        status, _, body = answer.partition(b"\r\n\r\n")
        document = json.loads(body)
        if status.startswith(b"HTTP/1.1 200 "):
            check_results(document["results"], numbers, self.expected)
            return "answered"
        assert status.startswith(b"HTTP/1.1 503 "), answer
        assert b"\r\nretry-after: " in status.lower()
        return str(document["code"])


def wait_until_ready(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        while client.get("/health/ready").status_code != 200:
            pass


def waiting_in(text: str) -> float:
    """Images that wait or are decoded, by the gauges of a scrape."""
    gauges = ("residuum_queue_entries", "residuum_decoding_images")
    return sum(number for (name, _), number in read(text).items() if name in gauges)


def test_failing_engines_and_leaving_clients_cross_and_lose_nothing(
    artifact: Path, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.support.live.SERVE", f"from {__name__} import serve_unreliably as serve; serve()"
    )
    faults = dict(hang_timeout=1, check_interval=0.1, queue_capacity=32)
    with live_server(model=artifact, **FLAGS | {"threads": 2, "instances": 2}, **faults) as server:
        clients = [Client(server, expected, seed) for seed in range(12)]
        with ThreadPoolExecutor(len(clients)) as threads:
            outcomes = sum(threads.map(lambda client: client.ask(40), clients), Counter())
        assert set(outcomes) <= {
            *("answered", "left while sending", "left while waiting"),
            *("engine_failed", "overloaded", "deadline"),
        }
        assert outcomes["answered"] > 100
        assert outcomes["engine_failed"] > 10

        with httpx.Client(base_url=server.url, timeout=60) as client:
            wait_until_ready(server.url)
            while waiting_in(text := client.get("/metrics").text):
                pass
        labels = dict(model="resnet20", graph="classify")
        assert (value(text, "residuum_engine_rebuilds_total", **labels) or 0) >= 1
        assert (value(text, "residuum_failed_batches_total", **labels) or 0) >= 10
        assert not any("Traceback" in line or "never retrieved" in line for line in server.log)
