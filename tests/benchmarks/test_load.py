"""benchmarks.load and open_loop: what the load tools send, wait for and count. No timing is asserted."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.http_servers import OURS, SERVERS, make_target, top_classes
from benchmarks.http_subject import agreement, photographs
from benchmarks.load import (
    Answer,
    LoadFailed,
    Target,
    closed_loop,
    open_loop,
    percentile,
    read_wrk,
    summarise,
)
from tests.support.live import live_server

# --- what came of a load ------------------------------------------------------------------------------


def test_what_wrk_printed() -> None:
    closed = read_wrk(
        "Running 2s test @ http://127.0.0.1\n  1 threads and 16 connections\n\n"
        'JSON {"seconds": 2.000000, "statuses": {"200": 60, "503": 4}, "unanswered": 1, "p50_ms": 5.5, '
        '"p99_ms": 9.25, "decode_ms": [1.0, 3.0, 8.0], "inference_ms": []}\n'
    )
    assert closed.requests_per_s == 30
    assert (closed.p50_ms, closed.p99_ms, closed.unanswered) == (5.5, 9.25, 1)
    assert closed.statuses == {"200": 60, "503": 4}
    assert (closed.decode_ms, closed.inference_ms) == (3.0, None)


def test_wrk_that_says_nothing() -> None:
    with pytest.raises(LoadFailed, match="unable to connect"):
        read_wrk("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_an_open_loop_counts_what_was_due_after_the_ramp() -> None:
    answers = [
        Answer(0.5, 0.1, 200),  # in the ramp
        Answer(0.9, 0.3, 200),  # due in the ramp, answered after it: goodput, no latency
        Answer(1.0, 0.1, 200),
        Answer(1.5, 0.2, 200),
        Answer(1.6, 0.9, 200),  # late
        Answer(2.0, 0.01, 503),
        Answer(2.1, 5.0, 0),
        Answer(2.9, 0.2, 200, 0.03),  # answered after the end: latency, no goodput
    ]
    found = summarise(answers, rate=4.0, seconds=2.0, ramp_s=1.0, limit_ms=500.0)
    assert found.goodput == 3 / 2
    assert (found.late, found.sent_late_ms) == (1, 30)
    assert found.statuses == {"0": 1, "200": 4, "503": 1}
    assert (found.p50_ms, found.p99_ms) == (200, 900)
    nothing = summarise([Answer(1.0, 0.1, 503)], 1.0, 1.0, 0.5, 500.0)
    assert (nothing.goodput, nothing.p50_ms, nothing.p99_ms) == (0, None, None)


@pytest.mark.parametrize(("percent", "expected"), [(1, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_percentiles(percent: float, expected: int) -> None:
    assert percentile(range(1, 101), percent) == expected


# --- load tools ---------------------------------------------------------------------------------------

Reply = Callable[[int, bytes], int | None]


@contextmanager
def server_that(reply: Reply) -> Iterator[str]:
    """A server whose answer to the nth body has that status; None: it hangs up."""
    lock, count = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal count
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                number, count = count, count + 1
            status = reply(number, body)
            if status is None:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            if status == 503:
                self.send_header("Retry-After", "30")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def bodies(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path, data in zip(paths, (b"\x00\xff" * 40_000, b"second"), strict=True):
        path.write_bytes(data)
    return paths


def test_an_open_loop_waits_for_no_answer_and_counts_from_when_a_request_was_due(
    bodies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is answered before all requests have come: a closed loop would wait for ever."""
    number, all_there = 40, threading.Event()
    seen: list[Answer] = []
    monkeypatch.setattr(
        "benchmarks.load.summarise", lambda answers, *rest: seen.extend(answers) or summarise(answers, *rest)
    )

    def reply(index: int, body: bytes) -> int:
        assert body in {path.read_bytes() for path in bodies}
        if index == number - 1:
            all_there.set()
        return 200 if all_there.wait(60) else 500

    with server_that(reply) as url:
        found = open_loop(Target(url, "image/jpeg", bodies), number, 0.75, 0.25, 60_000)
    assert found.statuses == {"200": 30}
    assert len(seen) == number
    last = max(answer.due_s for answer in seen)
    assert last == pytest.approx((number - 1) / number)
    assert all(answer.due_s + answer.latency_s >= last for answer in seen)


def test_an_open_loop_tells_refusals_and_lost_connections_apart(bodies: list[Path]) -> None:
    with server_that(lambda index, _: (200, 503, None)[index % 3]) as url:
        found = open_loop(Target(url, "image/jpeg", bodies), 30, 1, 0, 60_000)
    # One that is sent on a connection just when the server hangs up is lost too, so not exactly ten each.
    assert sum(found.statuses.values()) == 30
    assert set(found.statuses) == {"0", "200", "503"}


needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@needs_wrk
def test_wrk_posts_the_bodies_in_turn_and_counts_by_status(bodies: list[Path]) -> None:
    got = []

    def reply(index: int, body: bytes) -> int:
        got.append(body)
        return 503 if index % 4 == 3 else 200

    with server_that(reply) as url:
        found = closed_loop(Target(url, "image/jpeg", bodies), 1, 1)
    first, second = (path.read_bytes() for path in bodies)
    assert set(got[:2]) == {first, second}
    assert got[2:6] == got[:2] * 2
    assert set(found.statuses) == {"200", "503"}
    assert abs(found.statuses["200"] - 3 * found.statuses["503"]) <= 3
    assert found.decode_ms is None
    assert found.client_ms is not None
    assert found.client_ms > 0


@needs_wrk
@pytest.mark.parametrize("patient", [False, True])
def test_a_patient_client_comes_back_when_it_was_told_to(bodies: list[Path], patient: bool) -> None:
    """Both connections are refused at once, and told to wait for longer than the load lasts."""
    with server_that(lambda index, _: 503) as url:
        found = closed_loop(Target(url, "image/jpeg", bodies), 2, 1, patient=patient)
    num_refused = found.statuses["503"]
    assert num_refused == 2 if patient else num_refused > 4


def test_load_needs_wrk(bodies: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoadFailed, match="apt-get install wrk"):
        closed_loop(Target("http://127.0.0.1:1/", "image/jpeg", bodies), 1, 1)


def test_both_loops_against_the_server(tmp_path: Path) -> None:
    files = photographs(None, tmp_path)[:3]
    ours = next(server for server in SERVERS if server.name == OURS)
    with live_server() as server:
        target = make_target(ours, server.port, files, tmp_path)
        assert agreement([set(top) for top in top_classes(target)], top_classes(target)) == 1
        found = open_loop(target, 20, 1, 0, 60_000)
        assert found.statuses == {"200": 20}
        assert found.late == 0
        assert found.p50_ms is not None
        assert found.p99_ms is not None
        assert 0 < found.p50_ms <= found.p99_ms
        if shutil.which("wrk"):
            closed = closed_loop(target, 2, 1)
            assert set(closed.statuses) == {"200"}
            assert closed.requests_per_s > 0
            assert closed.decode_ms is not None
            assert closed.inference_ms is not None
