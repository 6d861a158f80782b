"""What hurts the users of other servers must not happen here: one test each, short and over HTTP.

The number and the name are those of the design's list; what is looked into more deeply stands in the tests of
the module.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from artifact.preprocess import prepare
from service.batching.batcher import Batcher
from service.batching.scheduler import MAX_OVERTAKEN, Scheduler
from service.batching.types import Runner
from service.http.app import create_app
from service.http.protocol import protocol_for
from service.runtime import decoding
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedGraph
from service.settings import Settings
from tests.service.telemetry.test_metrics import value
from tests.support.images import encode, photograph
from tests.support.workshop import (
    Arrays,
    Breakable,
    Gate,
    Outputs,
    Workshop,
    engines_from_a_workshop,
    expected_logits,
    sticky,
)

IMAGES = [encode(photograph(96, 80, seed), "JPEG") for seed in range(24)]
MAX_BATCH = 4


class Here:
    """A server in a thread of this process, on a real socket."""

    def __init__(self, workshop: Workshop, serving: Serving, server: uvicorn.Server, port: int) -> None:
        self.workshop = workshop
        self.serving = serving
        self.server = server
        self.port = port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    @property
    def graph(self) -> LoadedGraph:
        return self.serving.models.get(None).graphs["classify"]

    @property
    def engine(self) -> Breakable:
        [engine] = self.workshop.now()
        return engine

    def ask(self, number: int = 0, **params: object) -> httpx.Response:
        params = {"top_k": 10} | params
        return self.client.post("/classify", content=IMAGES[number], params=httpx.QueryParams(params))

    def send(self, number: int = 0) -> socket.socket:
        """A request whose client may leave before the answer."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(IMAGES[number])}\r\n\r\n"
        connection.sendall(head.encode() + IMAGES[number])
        return connection

    def form(self, num_images: int) -> list[tuple[str, bytes]]:
        return [("image", IMAGES[number]) for number in range(num_images)]

    def until_waiting(self, num_images: int) -> None:
        until(lambda: self.graph.batcher.num_waiting == num_images)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Meanwhile the engine is busy with a request."""
        gate = Gate()
        self.engine.fault = gate
        with ThreadPoolExecutor(1) as thread:
            first = thread.submit(self.ask)
            try:
                assert gate.held.wait(60)
                yield
            finally:
                self.engine.fault = None
                gate.go_on.set()
            assert first.result().status_code == 200


def until(condition: Callable[[], object]) -> None:
    while not condition():
        pass


@contextmanager
def a_server(artifact: Path, **settings: object) -> Iterator[Here]:
    usual: dict[str, object] = dict(
        model=(str(artifact),), engine="onnxruntime", precision="fp32", device="cpu", threads=1,
        max_batch_size=MAX_BATCH, queue_capacity=64, check_interval=0, access_log=False,
    )  # fmt: skip
    made = Settings.model_validate(usual | settings)
    loaded = threading.Event()
    with pytest.MonkeyPatch.context() as patch, engines_from_a_workshop(patch) as workshop:
        app = create_app(made, Serving(made, lambda _: loaded.set()))
        config = uvicorn.Config(app, http=protocol_for(made), ws="none", lifespan="on", log_config=None)
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                assert loaded.wait(60)
                here = Here(workshop, app.state.serving, server, listener.getsockname()[1])
                with here.client:
                    yield here
            finally:
                server.should_exit = True
                thread.join()


@pytest.fixture(scope="module")
def _shared(artifact: Path) -> Iterator[Here]:
    with a_server(artifact) as made:
        yield made


@pytest.fixture
def here(_shared: Here) -> Iterator[Here]:
    yield _shared
    assert _shared.serving.state == "ready"
    assert _shared.graph.batcher.num_waiting == 0


@pytest.fixture(scope="module")
def expected(artifact: Path) -> NDArray[Any]:
    """The logits of each of IMAGES, [N, K]."""
    return expected_logits(artifact, IMAGES)


def is_right(result: dict[str, Any], expected: NDArray[Any]) -> bool:
    logits = {prediction["index"]: prediction["logit"] for prediction in result["predictions"]}
    return np.allclose([logits[n] for n in range(len(expected))], expected, atol=2e-3)


def test_hurt_01_a_client_that_leaves_costs_no_slot_and_poisons_no_batch(
    here: Here, expected: NDArray[Any]
) -> None:
    with ThreadPoolExecutor(1) as thread:
        with here.held():
            before = sum(here.engine.sizes)
            leavers = [here.send(1), here.send(2), here.send(3)]
            here.until_waiting(3)
            stays = thread.submit(here.ask, 4)
            here.until_waiting(4)
            for connection in leavers:
                connection.close()
            here.until_waiting(1)
        answer = stays.result()
    assert is_right(answer.json()["results"][0], expected[4])
    assert sum(here.engine.sizes) - before == 1  # nobody ran for those who left

    # One that leaves while its batch runs can no longer be cancelled, and its batch goes on.
    gate = here.engine.fault = Gate()
    with here.send(5):
        assert gate.held.wait(60)
    here.engine.fault = None
    gate.go_on.set()
    assert is_right(here.ask(6).json()["results"][0], expected[6])


def test_hurt_02_after_a_sticky_error_it_does_not_say_that_it_is_ready(
    here: Here, expected: NDArray[Any]
) -> None:
    here.workshop.may_open.clear()
    here.engine.fault = sticky
    answer = here.ask()
    assert (answer.status_code, answer.json()["code"]) == (503, "engine_failed")
    until(lambda: here.client.get("/health/ready").status_code == 503)
    assert here.client.get("/health/live").status_code == 200
    here.workshop.may_open.set()
    until(lambda: here.client.get("/health/ready").status_code == 200)
    assert is_right(here.ask(7).json()["results"][0], expected[7])


def test_hurt_03_every_batch_has_a_size_that_was_run_before_it_was_ready(artifact: Path) -> None:
    with a_server(artifact) as here:
        warmed = {*here.engine.sizes}
        here.engine.sizes.clear()
        for num_images in (1, 2, 3, 4, 5, 7):
            assert here.client.post("/classify", files=here.form(num_images)).status_code == 200
        assert warmed == {1, 2, 4}
        assert {*here.engine.sizes} <= warmed


def test_hurt_04_the_variety_of_sizes_is_bounded_whatever_comes(here: Here) -> None:
    for num_images in range(1, 13):
        assert here.client.post("/classify", files=here.form(num_images)).status_code == 200
    assert {*here.engine.sizes} <= {1, 2, 4}


def test_hurt_05_images_are_decoded_while_the_engine_is_busy_and_it_runs_while_one_is_decoded(
    here: Here, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as thread:
        with here.held():
            second = thread.submit(here.ask, 1)
            here.until_waiting(1)  # it is decoded
        assert second.result().status_code == 200

        begun, go_on = threading.Event(), threading.Event()

        def slow(data: bytes, *args: Any) -> Any:
            if data == IMAGES[1]:
                begun.set()
                assert go_on.wait(60)
            return prepare(data, *args)

        monkeypatch.setattr(decoding, "prepare", slow)
        second = thread.submit(here.ask, 1)
        assert begun.wait(60)
        # Another thread decodes this one, where there are two; its pixels come ready to run here anyway.
        tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 32 * 32 * 3}
        assert here.client.post("/v2/models/resnet20/infer", json={"inputs": [tensor]}).status_code == 200
        go_on.set()
        assert is_right(second.result().json()["results"][0], expected[1])


def test_hurt_06_what_cannot_be_done_is_refused_at_once_and_never_run(artifact: Path) -> None:
    with (
        a_server(artifact, queue_capacity=3, max_images=3, max_batch_size=1) as here,
        ThreadPoolExecutor(3) as threads,
    ):
        with here.held():
            waiting = [threads.submit(here.ask, number) for number in (2, 3)]
            leaver = here.send(1)
            here.until_waiting(3)
            for _ in range(20):  # the engine is held all the while: these are answers of now
                answer = here.ask(4)
                assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
                assert int(answer.headers["retry-after"]) >= 1
            leaver.close()
            here.until_waiting(2)
            late = here.ask(1, timeout_ms=100)
            assert (late.status_code, late.json()["code"]) == (503, "deadline")
            here.until_waiting(2)
            before = len(here.engine.sizes)
        assert [each.result().status_code for each in waiting] == [200, 200]
        assert len(here.engine.sizes) - before == 2


def test_hurt_07_nobody_gets_anothers_answer(here: Here, expected: NDArray[Any]) -> None:
    numbers = [*range(len(IMAGES))] * 3
    random.Random(0).shuffle(numbers)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(here.ask, numbers))
    for number, answer in zip(numbers, answers, strict=True):
        assert is_right(answer.json()["results"][0], expected[number])
    files = here.form(10)
    results = here.client.post("/classify?top_k=10", files=files).json()["results"]
    assert all(is_right(result, logits) for result, logits in zip(results, expected[:10], strict=True))


def test_hurt_08_the_queue_gauge_comes_down_when_clients_leave(here: Here) -> None:
    def gauge() -> float | None:
        text = here.client.get("/metrics").text
        return value(text, "residuum_queue_entries", model="resnet20", graph="classify")

    with here.held():
        leavers = [here.send(number) for number in range(3)]
        until(lambda: gauge() == 3)
        for connection in leavers:
            connection.close()
        until(lambda: gauge() == 0)  # while the engine is still held


def test_hurt_09_a_readiness_probe_leaks_no_connection_and_needs_no_key(artifact: Path) -> None:
    with a_server(artifact, api_key=("secret",), rate_limit=1) as here:
        here.client.close()
        for path in ("/health/ready", "/v2/health/ready", "/metrics", "/health/live") * 10:
            assert get(here.port, path).status == 200
        until(lambda: not here.server.server_state.connections)
        assert get(here.port, "/models").status == 401


def get(port: int, path: str) -> HTTPResponse:
    """On a connection of its own."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        return connection.getresponse()


def test_hurt_10_max_batch_size_holds_for_batches_that_clients_make(here: Here) -> None:
    here.engine.sizes.clear()
    answer = here.client.post("/classify", files=here.form(11))
    assert len(answer.json()["results"]) == 11
    data = [0] * 9 * 32 * 32 * 3
    tensor = {"name": "images", "datatype": "UINT8", "shape": [9, 32, 32, 3], "data": data}
    answer = here.client.post("/v2/models/resnet20/infer", json={"inputs": [tensor]})
    assert answer.json()["outputs"][0]["shape"] == [9, 10]
    assert here.engine.sizes
    assert max(here.engine.sizes) <= MAX_BATCH


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate, br, zstd", None), ("br", None), ("*", None), ("gzip;q=0, br", None), ("gzip", "gzip")],
)
def test_hurt_11_nothing_is_encoded_as_a_client_cannot_read_it(
    here: Here, accepted: str, encoding: str | None
) -> None:
    """Only the Open Inference Protocol's answers are ever compressed, for those who ask for just that."""
    headers = {"accept-encoding": accepted}
    for answer in (
        here.client.post("/classify", content=IMAGES[0], headers=headers),
        here.client.post("/introspect", content=IMAGES[0], headers=headers),
        *(here.client.get(path, headers=headers) for path in ("/metrics", "/openapi.json", "/docs", "/v2")),
    ):
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 32 * 32 * 3}
    answer = here.client.post("/v2/models/resnet20/infer", json={"inputs": [tensor]}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers.get("content-encoding") == encoding


# Priorities


class Order:
    """Engines of one device, which note what they begin and go on one batch at a time."""

    def __init__(self, slots: int) -> None:
        self.scheduler = Scheduler("test", slots)
        self.begun: list[tuple[str, float]] = []  # whose batch, and its first entry
        self.step = threading.Semaphore(0)

    def batcher(self, name: str, priority: int, instances: int) -> Batcher:
        def run(inputs: Arrays) -> Outputs:
            self.begun.append((name, float(inputs["x"][0, 0])))
            assert self.step.acquire(timeout=60)
            return {"x": inputs["x"]}

        return Batcher(
            [Runner(run, {1: 1.0}, instances)],
            self.scheduler,
            max_wait_ms=0,
            queue_capacity=1000,
            priority=priority,
        )


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("num_others", [1, 3])
def test_introspect_delays_classify_by_no_more_than_one_batch(slots: int, num_others: int) -> None:
    """Between the moment when a classify entry comes and the one when it begins, one batch of introspect
    begins at most, whatever waits and whichever had been overtaken."""
    order = Order(slots)
    classify = order.batcher("classify", 0, slots)
    others = [order.batcher(f"introspect {n}", 1, slots) for n in range(num_others)]
    futures = [future for other in others for future in other.submit([row(n) for n in range(20)])]
    until(lambda: len(order.begun) == slots)
    came: dict[float, int] = {}  # entry -> batches begun when it came
    for number in range(4 * MAX_OVERTAKEN):
        came[number] = len(order.begun)
        futures += classify.submit([row(number)])
        begun = len(order.begun)
        order.step.release()
        until(lambda begun=begun: len(order.begun) > begun)
    for _ in futures:
        order.step.release()
    for future in futures:
        future.result(60)
    delays = []
    for number, index in came.items():
        own = order.begun.index(("classify", number))
        delays.append(sum(name != "classify" for name, _ in order.begun[index:own]))
    assert max(delays) == 1  # it has its turns
    for batcher in (classify, *others):
        batcher.close(60)
    order.scheduler.close(60)


def row(value: float) -> Arrays:
    return {"x": np.array([value], np.float32)}
