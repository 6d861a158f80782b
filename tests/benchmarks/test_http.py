"""benchmarks.http: load tools, statistics, photographs, tables and chart. No timing is asserted."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifact.manifest import Preprocessing, read_manifest
from artifact.preprocess import preprocess
from benchmarks import http
from benchmarks.http import OVERLOADS, summarise_rounds
from benchmarks.http_chart import draw
from benchmarks.http_report import judge, print_ceiling, print_ours, print_servers
from benchmarks.http_servers import OURS, REQUIREMENTS, SERVERS, make_target, top_classes
from benchmarks.http_subject import Ceiling, agreement, photographs, rate_of
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
from benchmarks.theory import Machine
from tests.support.live import ROOT, live_server

AMX = Machine("cpu", "a processor", 2, 2.0, ("avx2", "amx_int8"), None, {}, 1e9, 1e9)
BEST = Ceiling(2, 2.0, 1000.0, 4.0, 250.0, "openvino", 2, 4, ())


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


# --- what is sent, and to whom ------------------------------------------------------------------------


def test_made_up_photographs_are_as_large_as_real_ones(tmp_path: Path) -> None:
    paths = photographs(None, tmp_path)
    assert len({path.read_bytes() for path in paths}) == len(paths) == 16
    for path in paths:
        assert 50_000 < path.stat().st_size < 100_000
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")


def test_photographs_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert http.main(["--images", str(tmp_path)]) == 2
    assert "no .jpg or .jpeg file" in capsys.readouterr().err
    for name in ("b.JPEG", "a.jpg", "c.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in photographs(tmp_path, tmp_path)] == ["a.jpg", "b.JPEG"]


def test_a_form_carries_the_image(tmp_path: Path) -> None:
    (file := tmp_path / "a.jpg").write_bytes(b"\xff\xd8\r\n--benchmark no end\r\n\x00")
    tutorial = next(server for server in SERVERS if server.field == "file")
    target = make_target(tutorial, 80, [file], tmp_path)
    form = message_from_bytes(
        f"Content-Type: {target.content_type}\r\n\r\n".encode() + target.bodies[0].read_bytes()
    )
    (part,) = form.get_payload()
    assert part.get_param("name", header="content-disposition") == "file"
    assert part.get_payload(decode=True) == file.read_bytes()


def test_peers_have_the_engines_that_we_have() -> None:
    ours = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    peers = dict(re.findall(r"^([\w-]+)==(\S+)$", REQUIREMENTS.read_text(), re.MULTILINE))
    shared = {"fastapi", "numpy", "onnxruntime", "openvino", "pillow", "uvicorn"}
    assert {name: peers[name] for name in shared} == {name: ours[name] for name in shared}


def test_peers_see_our_pixels_and_run_our_graph(
    tmp_path: Path, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEER_ARTIFACT", str(embedded))
    from benchmarks.peers import common

    file = photographs(None, tmp_path)[0].read_bytes()
    spec: Preprocessing = read_manifest(embedded).preprocessing
    pixels = preprocess(file, spec).pixels
    assert (common.pixels_of(file) == pixels).all()
    assert (common.pixels_of(turned(file)) == preprocess(turned(file), spec).pixels).all()
    logits = common.open_int8(threads=1)(pixels[None])[0]
    best = common.answer(logits)["predictions"]
    assert [prediction["index"] for prediction in best] == list(np.argsort(-logits)[:5])
    assert best[0]["probability"] == pytest.approx(np.exp(logits.max()) / np.exp(logits).sum(), rel=1e-5)


def turned(data: bytes) -> bytes:
    """Upright instead of broad."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG")
    return buffer.getvalue()


def test_agreement() -> None:
    assert agreement([{1, 2}, {3, 4}], [{1, 2}, {4, 5}]) == 0.75


def test_a_rate_counts_all_threads() -> None:
    done = []
    assert rate_of(lambda: done.append(1), 2, 0.01) > 0
    assert len(done) >= 4  # each once before it counts, and at least once after


def test_the_ceiling_does_both_one_after_the_other() -> None:
    assert BEST.requests_per_s == pytest.approx(200)  # 1000 decodes or 250 inferences a second


# --- tables -------------------------------------------------------------------------------------------


def one_round(rate: float, **more: Any) -> dict[str, Any]:
    usual = {"p50_ms": 80.0, "p99_ms": 90.0, "statuses": {"200": 10, "503": 2}, "unanswered": 0}
    return {"requests_per_s": rate, "agreement": 0.9, **usual, **more}


@pytest.fixture
def document() -> dict[str, Any]:
    """As benchmarks.http makes it, of two rounds in which each peer was slow once, and one failed once."""
    rates = {OURS: (200, 100), "tutorial": (10, 4), "litserve-ort": (60, 25), "litserve-openvino": (100, 50)}
    rows = {
        server.name: {"title": server.title, "rounds": [one_round(rate) for rate in rates[server.name]]}
        for server in SERVERS
        if server.name in rates
    }
    rows["bentoml"] = {"title": "BentoML", "rounds": [{"problem": "it ended\nlog"}, one_round(20)]}
    rows["fastapi"] = {"title": "FastAPI", "rounds": [{"problem": "it ended\nlog"}] * 2}
    summarise_rounds(rows, [200, 200])
    overloads = [
        {"times": times, "rate": 150 * times, "goodput": 140, "p50_ms": 300.0, "p99_ms": None, "late": 1}
        | {"sent_late_ms": 0.5, "statuses": {"200": 1}}
        for times in OVERLOADS
    ]
    ours = {
        "engine": "openvino",
        "precision": "int8",
        "alone": one_round(100, decode_ms=3.0, inference_ms=9.0, overhead_ms=0.5),
        "steady": {"rate": 105.0, "p50_ms": 40.0, "p99_ms": 90.0, "statuses": {"200": 9}},
        "overloads": overloads,
    }
    return {
        "model": "resnet50-random",
        "machine": AMX.as_json(),
        "images": {"count": 16, "mean_bytes": 70_000.0},
        "settings": {"connections": 16, "limit_ms": 1000.0},
        "ceiling": BEST.as_json() | {"rounds": [200, 200]},
        "servers": rows,
        "ours": ours,
    }


def test_a_ratio_is_the_median_of_the_rounds_own(document: dict[str, Any]) -> None:
    rows = document["servers"]
    assert rows[OURS]["requests_per_s"] == 150
    assert rows[OURS]["ours_is_times"] == 1
    assert rows[OURS]["of_ceiling"] == 0.75
    assert (rows["bentoml"]["of_ceiling"], rows["fastapi"]["of_ceiling"]) == (0.1, None)
    assert rows["tutorial"]["ours_is_times"] == pytest.approx((20 + 25) / 2)
    assert rows["bentoml"]["ours_is_times"] == 5  # of the round in which it ran
    assert rows["fastapi"]["requests_per_s"] is None


def test_aims(document: dict[str, Any]) -> None:
    rows, ours = document["servers"], document["ours"]
    met = {aim["aim"]: aim["met"] for aim in judge(rows, ours, AMX, "resnet50")}
    assert met == {
        "/ LitServe + ORT int8": True,
        "/ LitServe on the same engine": True,
        "/ FastAPI + torch fp32": True,
        "of the ceiling": False,  # 150 of 200
        "ms beside decode and inference, 1 connection": True,
        "p99 / p50 at 70 %": False,
        "goodput at 3 times the peak, of it": False,
    }
    elsewhere = judge(rows, ours, replace(AMX, features=("avx2",)), "resnet50")
    assert [aim["why"] for aim in elsewhere[:4]] == ["no AMX", "no AMX", "no AMX", None]
    assert {aim["why"] for aim in judge(rows, ours, AMX, "embedded")[:3]} == {
        "only for ResNet-50 at 224 pixels"
    }
    alone = judge({OURS: rows[OURS]}, ours, AMX, "resnet50")
    assert [aim["why"] for aim in alone[:3]] == ["not measured in this run"] * 3
    assert {aim["met"] for aim in judge(rows, None, AMX, "resnet50")} == {None}


def test_tables_and_chart(
    document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_ceiling(BEST, "resnet50", 16, 70_000)
    print_servers(document["servers"], 16)
    print_ours(document["ours"], document["servers"][OURS])
    lines = capsys.readouterr().out.splitlines()
    (tutorial,) = (line for line in lines if line.startswith("FastAPI + torch fp32"))
    assert tutorial.split()[4:] == ["7.0", "4.0", "-", "10.0", "4%", "22.50x", "80.0", "90.0", "90%", "4"]
    assert any(line.startswith("FastAPI  ") and line.endswith("failed: it ended") for line in lines)
    assert any("200.0 requests/s" in line for line in lines)
    assert any("75.0% of the ceiling" in line for line in lines)
    draw(json.loads(json.dumps(document)), tmp_path / "charts" / "http.png")
    with Image.open(tmp_path / "charts" / "http.png") as image:
        image.load()
        assert image.width > 1000
    draw({**document, "ours": None}, tmp_path / "peers.png")
    assert not math.isnan(json.loads(json.dumps(document, allow_nan=False))["ceiling"]["requests_per_s"])
