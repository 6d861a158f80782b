"""The end of a server: every request that was sent has a whole answer, and the exit code is 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from tests.support.live import ROOT, LiveServer
from tests.support.load import IMAGES, answer_on, begin_a_request, head, under_load, wait_until_draining

FLAGS: dict[str, object] = {"device": "cpu", "threads": 1, "max_batch_size": 4, "access_log": False}
PAGE = "https://page.example"


@pytest.fixture
def server() -> Iterator[LiveServer]:
    """To be ended by the test."""
    running = LiveServer(**FLAGS, drain_timeout=60, cors_origin=PAGE)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.process.kill()
        running.wait()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_every_request_under_load_is_answered(server: LiveServer, signal_number: int) -> None:
    with under_load(server) as load:
        assert server.stop(signal_number) == 0, "".join(server.log)
    assert not load.lost
    assert not load.not_closing
    assert set(load.statuses) == {200, 503}
    assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


def test_while_a_request_is_finished_new_ones_are_refused_and_health_is_told(server: LiveServer) -> None:
    data = IMAGES[0]
    kept = HTTPConnection("127.0.0.1", server.port, timeout=60)
    kept.request("GET", "/health/ready")
    assert kept.getresponse().read() == b'{"status":"ready"}'
    with begin_a_request(server, head(len(data)) + data[:100]) as accepted:
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server)

        kept.request("POST", "/classify", data)  # on a connection that was there before
        answers = [(kept.getresponse(), 503)]
        for method, path, status in (
            ("POST", "/classify", 503),
            ("GET", "/models", 503),
            ("GET", "/health/ready", 503),
            ("GET", "/health/live", 200),
            ("OPTIONS", "/classify", 200),  # what a browser asks first
        ):
            anew = HTTPConnection("127.0.0.1", server.port, timeout=60)
            asking = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
            anew.request(method, path, data if method == "POST" else None, asking)
            answers.append((anew.getresponse(), status))
        for answer, status in answers:
            assert (answer.status, answer.headers["Connection"]) == (status, "close")
            if status == 503:
                assert json.loads(answer.read())["code"] == "not_ready"
                assert int(answer.headers["Retry-After"]) >= 1

        accepted.sendall(data[100:])
        answer = answer_on(accepted)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert server.wait() == 0, "".join(server.log)


def test_the_open_inference_protocol_is_refused_in_its_own_words(server: LiveServer) -> None:
    with begin_a_request(server, head(2) + b"x") as accepted:
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server)
        answer = httpx.post(f"{server.url}/v2/models/x/infer", content=b"{}")
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        accepted.sendall(b"y")
        assert answer_on(accepted).startswith(b"HTTP/1.1 422")
    assert server.wait() == 0


def test_a_connection_that_has_sent_nothing_yet_is_answered(server: LiveServer) -> None:
    """One that was opened before the signal, and speaks after it."""
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as silent,
        begin_a_request(server, head(2) + b"x") as accepted,
    ):
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server)
        silent.sendall(head(len(IMAGES[0])) + IMAGES[0])
        assert answer_on(silent).startswith(b"HTTP/1.1 503")
        accepted.sendall(b"y")
        answer_on(accepted)
    assert server.wait() == 0


def test_connections_in_the_queue_are_answered(server: LiveServer) -> None:
    """The server is stopped before it accepts them, and finds the signal when it goes on."""
    server.process.send_signal(signal.SIGSTOP)
    queued = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(50)]
    for connection in queued:
        connection.sendall(head(len(IMAGES[0])) + IMAGES[0])
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGCONT)
    for connection in queued:
        with connection:
            assert answer_on(connection)[:12] in (b"HTTP/1.1 200", b"HTTP/1.1 503")
    assert server.wait() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_that_outlives_the_timeout_is_answered_too(workers: int) -> None:
    server = LiveServer(**FLAGS, drain_timeout=3, workers=workers)
    server.wait_until_ready()
    with under_load(server) as load, begin_a_request(server, head(1000) + b"begin") as accepted:
        assert server.stop() == 0, "".join(server.log)
        answer = answer_on(accepted)
    assert not load.lost
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"not_ready" in answer
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert not [line for line in server.log if "Traceback" in line]


# Drains one server after another, by signals that come while the same thread counts.
SIGNALS = """
import asyncio, os, queue, signal, socket, sys
from types import SimpleNamespace
from service.http.middleware.gate import Accepted
from service.telemetry.metrics import Metrics
from service.process.server import Server
from service.settings import Settings

NUM_SIGNALS = 200
sys.setswitchinterval(1e-6)  # else a signal comes only when this thread waits
metrics, drained, handled = Metrics(), [], queue.SimpleQueue()

def drain():
    metrics.state("draining")
    drained.append(True)

def tell(number, frame):
    servers.pop().handle_exit(number, frame)
    handled.put(None)

def kill():
    for _ in range(NUM_SIGNALS):
        os.kill(os.getpid(), signal.SIGTERM)
        handled.get()

async def main():
    killing = asyncio.create_task(asyncio.to_thread(kill))
    while not killing.done() or len(drained) < NUM_SIGNALS:
        for number in range(100):
            metrics.decoding(number)
        await asyncio.sleep(0)

app = SimpleNamespace(state=SimpleNamespace(serving=SimpleNamespace(drain=drain), accepted=Accepted()))
with socket.socket() as listener:
    servers = [Server(app, Settings(drain_timeout=600), listener) for _ in range(NUM_SIGNALS)]
    signal.signal(signal.SIGTERM, tell)
    asyncio.run(main())
"""


def test_a_signal_may_come_while_something_is_counted(tmp_path: Path) -> None:
    """What counts holds a lock meanwhile, with several workers one for all metrics."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", SIGNALS], cwd=ROOT, env=environment, timeout=60, check=True)


def test_a_second_signal_ends_it_at_once(server: LiveServer) -> None:
    with begin_a_request(server, head(1000) + b"begin"):
        server.process.send_signal(signal.SIGTERM)
        wait_until_draining(server)
        assert server.stop() == 128 + signal.SIGTERM
