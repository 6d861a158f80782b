"""Metrics: what is counted, under which names, and the sum over several worker processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from service.telemetry.metrics import Duration, GraphStatistics, Metrics, ServerState
from tests.support.images import encode, photograph
from tests.support.live import ROOT, LiveServer, live_server

Sample = tuple[str, frozenset[tuple[str, str]]]


def read(text: str) -> dict[Sample, float]:
    """Sample name and labels -> value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float | None:
    return read(text).get((name, frozenset(labels.items())))


def scraped(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


# The table in the docs


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> type and labels, as docs/observability.md has them."""
    rows = re.findall(
        r"^\| `(residuum_\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$",
        (ROOT / "docs" / "observability.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_table_in_the_docs_is_the_registry() -> None:
    declared = {}
    for metric in vars(Metrics()).values():
        if hasattr(metric, "describe"):
            described = metric.describe()[0]
            suffix = "_total" if described.type == "counter" else ""
            declared[described.name + suffix] = (described.type, tuple(metric._labelnames))
    assert len(declared) > 10
    assert documented() == declared


def test_names_say_their_unit() -> None:
    for name, (kind, _) in documented().items():
        assert name.endswith("_total") == (kind == "counter"), name
        if kind == "histogram":
            assert name.endswith(("_seconds", "_batch_size")), name


# What is counted


def test_a_graph_tells_histograms_and_statistics() -> None:
    metrics = Metrics()
    meter = metrics.graph("resnet50", "classify")
    meter.batch_done(3, 4, [0.25, 0.5, 1.0], 0.0625)
    meter.batch_done(3, 4, [0.0, 0.0, 0.0], 0.0625)
    meter.batch_done(1, 1, [0.5], 0.125)
    meter.batch_failed(2, 0.5)
    meter.decoded(0.03125)

    statistics = meter.statistics
    assert statistics.last_inference_epoch_ms > 1_700_000_000_000
    assert statistics == GraphStatistics(
        success=Duration(7, 2.25 + 6 * 0.0625 + 0.125),
        fail=Duration(2, 1.0),
        queue=Duration(7, 2.25),
        infer=Duration(7, 6 * 0.0625 + 0.125),
        decode=Duration(1, 0.03125),
        batches={3: Duration(2, 0.125), 1: Duration(1, 0.125)},
        execution_count=3,
        inference_count=7,
        last_inference_epoch_ms=statistics.last_inference_epoch_ms,
    )
    text, labels = scraped(metrics), {"model": "resnet50", "graph": "classify"}
    assert value(text, "residuum_queue_seconds_count", **labels) == 7
    assert value(text, "residuum_queue_seconds_sum", **labels) == 2.25
    assert value(text, "residuum_inference_seconds_count", **labels) == 3
    assert value(text, "residuum_batch_size_bucket", le="1.0", **labels) == 1
    assert value(text, "residuum_batch_size_bucket", le="4.0", **labels) == 3
    assert value(text, "residuum_failed_batches_total", **labels) == 1


def test_a_snapshot_stays_what_it_was() -> None:
    meter = Metrics().graph("a", "classify")
    meter.batch_done(1, 1, [0.0], 1.0)
    before = meter.statistics
    meter.batch_done(1, 1, [0.0], 1.0)
    assert before.batches == {1: Duration(1, 1.0)}
    assert before.execution_count == 1


def test_nothing_is_lost_between_threads() -> None:
    metrics = Metrics()
    meter = metrics.graph("a", "classify")

    def work(_: int) -> None:
        for _ in range(200):
            meter.queue_changed(1)
            meter.batch_done(2, 2, [0.5, 0.5], 1.0)
            meter.batch_failed(1, 1.0)
            meter.decoded(1.0)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    meter.queue_changed(0)
    assert meter.statistics.success == Duration(3200, 3200 * 1.5)
    assert meter.statistics.batches == {2: Duration(1600, 1600.0)}
    assert meter.statistics.fail.count == meter.statistics.decode.count == 1600
    assert value(scraped(metrics), "residuum_queue_entries", model="a", graph="classify") == 0


def test_the_queue_gauge_while_a_new_version_takes_over() -> None:
    metrics, labels = Metrics(), {"model": "a", "graph": "classify"}
    old, new = metrics.graph("a", "classify"), metrics.graph("a", "classify")
    old.queue_changed(5)
    new.queue_changed(2)
    assert value(scraped(metrics), "residuum_queue_entries", **labels) == 7
    old.queue_changed(0)
    assert value(scraped(metrics), "residuum_queue_entries", **labels) == 2
    assert new.statistics == GraphStatistics()


def info(metrics: Metrics) -> list[dict[str, str]]:
    return [dict(labels) for (name, labels), _ in read(scraped(metrics)).items() if name == INFO]


INFO = "residuum_model_info"


def test_what_is_loaded_is_told_as_long_as_it_is() -> None:
    metrics = Metrics()
    metrics.loaded("a", "1", "classify", "int8", "openvino", "cpu")
    metrics.loaded("a", "1", "introspect", "fp32", "openvino", "cpu")
    metrics.loaded("b", "1", "classify", "fp32", "onnxruntime", "cpu")
    metrics.loaded("a", "2", "classify", "fp32", "openvino", "cpu")
    assert sorted((each["model"], each["graph"], each["version"]) for each in info(metrics)) == [
        ("a", "classify", "2"),
        ("a", "introspect", "1"),
        ("b", "classify", "1"),
    ]
    metrics.graph("a", "classify").batch_done(1, 1, [0.0], 1.0)
    metrics.unloaded("a")
    assert [each["model"] for each in info(metrics)] == ["b"]
    text = scraped(metrics)
    assert value(text, "residuum_queue_entries", model="a", graph="classify") is None
    assert value(text, "residuum_batch_size_count", model="a", graph="classify") == 1


@pytest.mark.parametrize("state", ServerState)
def test_a_server_is_in_one_state(state: str) -> None:
    metrics = Metrics()
    metrics.state("loading")
    metrics.state(state)
    text = scraped(metrics)
    assert {each: value(text, "residuum_state", state=each) for each in ServerState} == {
        each: float(each == state) for each in ServerState
    }
    assert value(text, "residuum_ready") == float(state == "ready")


def test_servers_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    one.request("/classify", "a", 200, 0.5)
    assert "/classify" in scraped(one)
    assert "/classify" not in scraped(other)


def test_the_rest_is_counted() -> None:
    metrics = Metrics()
    metrics.refused("overloaded")
    metrics.cancelled()
    metrics.cache(hit=True)
    metrics.cache(hit=False)
    metrics.golden_check("a", "classify", passed=False)
    metrics.rebuilt("a", "classify")
    metrics.decoded(0.004)
    metrics.decoding(3)
    text, graph = scraped(metrics), {"model": "a", "graph": "classify"}
    assert value(text, "residuum_refused_total", code="overloaded") == 1
    assert value(text, "residuum_cancelled_total") == 1
    assert value(text, "residuum_cache_lookups_total", result="hit") == 1
    assert value(text, "residuum_cache_lookups_total", result="miss") == 1
    assert value(text, "residuum_golden_checks_total", result="failed", **graph) == 1
    assert value(text, "residuum_engine_rebuilds_total", **graph) == 1
    assert value(text, "residuum_decode_seconds_bucket", le="0.005") == 1
    assert value(text, "residuum_decode_seconds_bucket", le="0.003") == 0
    assert value(text, "residuum_decoding_images") == 3
    assert "_created" not in text


# Over HTTP


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with live_server(device="cpu", threads=1, access_log=False, api_key="secret") as running:
        yield running


def test_a_scrape_needs_no_key_and_names_routes_by_their_template(server: LiveServer) -> None:
    image = encode(photograph(64, 64), "JPEG")
    with httpx.Client(base_url=server.url, headers={"X-API-Key": "secret"}, timeout=60) as client:
        assert client.post("/classify", content=image).status_code == 200
        assert client.post("/classify", content=b"no image").status_code == 422
        assert client.post("/classify?model=made-up", content=image).status_code == 404
        model = client.get("/models").json()["models"][0]["name"]
        assert client.get(f"/models/{model}").status_code == 200
        assert client.get("/models/made-up").status_code == 404
        for path in ("/made-up", "/made-up/2?x=made-up", "/static-offline-docs/made-up"):
            assert client.get(path).status_code == 404
        assert client.get("/docs").status_code == 200
        assert client.delete("/classify").status_code == 405
    response = httpx.get(f"{server.url}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "made-up" not in response.text

    def count(route: str, status: int, model: str = "") -> float | None:
        name = "residuum_request_seconds_count"
        return value(response.text, name, route=route, status=str(status), model=model)

    assert count("/classify", 200, model) == 1
    assert count("/classify", 422, model) == 1
    assert count("/classify", 404) == 1
    assert count("/classify", 405) == 1
    assert count("/models/{name}", 200) == 1
    assert count("/models/{name}", 404) == 1
    assert count("/docs", 200) == 1
    assert count("/static-offline-docs/*", 404) == 1
    assert count("unmatched", 404) == 2
    assert value(response.text, "residuum_ready") == 1
    assert value(response.text, "residuum_batch_size_count", model=model, graph="classify") == 1
    assert value(response.text, "residuum_queue_entries", model=model, graph="classify") == 0
    assert value(response.text, "residuum_decode_seconds_count") == 2


def test_openmetrics_for_who_asks_for_it(server: LiveServer) -> None:
    accept = (  # as Prometheus 3 asks
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )
    response = httpx.get(f"{server.url}/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in parse_openmetrics(response.text)}
    assert families["residuum_refused"].type == "counter"
    assert response.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    "accept",
    [b"application/openmetrics-text;version=x", b"text/plain;version=x", b";;,", b"\xe9", b"a" * 5000],
)
def test_no_accept_breaks_a_scrape(server: LiveServer, accept: bytes) -> None:
    response = httpx.get(f"{server.url}/metrics", headers={b"Accept": accept})
    assert response.status_code == 200


# Several workers

WORKER = """
import json, sys
from service.telemetry.metrics import Metrics, count_as
count_as(int(sys.argv[1]))
metrics = Metrics()
meters = {}
for line in sys.stdin:
    name, *given = json.loads(line)
    if name == "scrape":
        answer = metrics.render()[0].decode()
    elif name in ("queue_changed", "batch_done"):
        meter = meters.setdefault("a", None) or metrics.graph("a", "classify")
        meters["a"] = meter
        answer = getattr(meter, name)(*given)
    else:
        answer = getattr(metrics, name)(*given)
    print(json.dumps(answer), flush=True)
"""


class Worker:
    """A process with metrics of its own that does what it is told."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WORKER, str(number)],
            cwd=ROOT,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *what: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self, signal_number: int = signal.SIGKILL) -> None:
        self.process.send_signal(signal_number)
        with self.process:
            pass


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[Worker]]:
    started = [Worker(number, tmp_path) for number in (1, 2, 3)]
    yield started
    for worker in started:
        worker.end()


def test_any_worker_answers_the_sum_of_all(workers: list[Worker], tmp_path: Path) -> None:
    first, second, third = workers
    labels = {"model": "a", "graph": "classify"}
    for worker in workers:
        worker.tell("state", "ready")
        worker.tell("loaded", "a", "1", "classify", "fp32", "onnxruntime", "cpu")
        worker.tell("request", "/classify", "a", 200, 0.125)
        worker.tell("batch_done", 2, 2, [0.25, 0.25], 0.5)
        worker.tell("queue_changed", 4)
    second.tell("state", "draining")
    third.tell("refused", "overloaded")
    scrapes = [read(worker.tell("scrape")) for worker in workers]
    assert scrapes[0] == scrapes[1] == scrapes[2]

    text = first.tell("scrape")
    assert value(text, "residuum_request_seconds_count", route="/classify", model="a", status="200") == 3
    assert value(text, "residuum_queue_seconds_sum", **labels) == 1.5
    assert value(text, "residuum_batch_size_bucket", le="2.0", **labels) == 3
    assert value(text, "residuum_queue_entries", **labels) == 12
    assert value(text, "residuum_refused_total", code="overloaded") == 1
    assert value(text, "residuum_ready") == value(text, "residuum_state", state="ready") == 2
    assert value(text, "residuum_state", state="draining") == 1
    info_labels = {"version": "1", "precision": "fp32", "engine": "onnxruntime", "device": "cpu"}
    assert value(text, INFO, **labels, **info_labels) == 3

    third.end()  # with images in its queue
    mark_process_dead(third.number, str(tmp_path))
    text = first.tell("scrape")
    assert value(text, "residuum_request_seconds_count", route="/classify", model="a", status="200") == 3
    assert value(text, "residuum_refused_total", code="overloaded") == 1
    assert value(text, "residuum_queue_entries", **labels) == 8
    assert value(text, "residuum_ready") == 1

    for worker in (first, second):
        worker.tell("unloaded", "a")
    text = first.tell("scrape")
    assert INFO + "{" not in text
    assert value(text, "residuum_queue_entries", **labels) == 8
    first.tell("queue_changed", 0)
    second.tell("queue_changed", 0)
    assert value(second.tell("scrape"), "residuum_queue_entries", **labels) == 0


def test_a_worker_goes_on_where_the_one_before_has_ended(workers: list[Worker], tmp_path: Path) -> None:
    """Else the directory would grow, and every scrape take longer, with each that dies."""
    first, second, third = workers
    request = {"route": "/classify", "model": "a", "status": "200"}
    for worker in workers:
        worker.tell("request", "/classify", "a", 200, 0.125)
        worker.tell("refused", "overloaded")
        worker.tell("state", "ready")
    files = sorted(tmp_path.iterdir())
    for number in range(3):
        third.end()
        mark_process_dead(third.number, str(tmp_path))
        assert value(first.tell("scrape"), "residuum_ready") == 2
        third = workers[2] = Worker(third.number, tmp_path)
        third.tell("request", "/classify", "a", 200, 0.125)
        third.tell("refused", "overloaded")
        third.tell("state", "ready")
        text = second.tell("scrape")
        assert value(text, "residuum_request_seconds_count", **request) == 4 + number
        assert value(text, "residuum_request_seconds_bucket", le="0.15", **request) == 4 + number
        assert value(text, "residuum_request_seconds_sum", **request) == (4 + number) * 0.125
        assert value(text, "residuum_refused_total", code="overloaded") == 4 + number
        assert value(text, "residuum_ready") == 3
    assert sorted(tmp_path.iterdir()) == files


def test_a_directory_of_another_servers_workers_is_left_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "residuum", "serve", "--model", "nix", "--artifacts", str(tmp_path)]
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--port", "0"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "nix" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_server_with_workers_answers_the_sum_whichever_is_asked() -> None:
    image = encode(photograph(64, 64), "JPEG")
    with live_server(device="cpu", threads=1, workers=2, access_log=False) as server:
        for _ in range(20):  # a connection each, so that both workers get some
            assert httpx.post(f"{server.url}/classify", content=image, timeout=60).status_code == 200
        while (counted := num_classified(server)) < 20:  # a request is counted when its answer is out
            assert server.process.poll() is None
        assert counted == 20
        for _ in range(8):
            text = httpx.get(f"{server.url}/metrics", timeout=60).text
            assert value(text, "residuum_ready") == 2
            assert value(text, "residuum_decode_seconds_count") == 20
            assert "process_" not in text
            assert num_classified(server) == 20


def num_classified(server: LiveServer) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    return sum(
        number
        for (name, labels), number in read(text).items()
        if name == "residuum_request_seconds_count" and ("route", "/classify") in labels
    )
