"""An engine that answers wrong, fails or hangs: the server says so, never answers wrong, and mends itself."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from artifact.manifest import read_manifest
from artifact.preprocess import preprocess
from engines.engine import EngineError, EngineOptions
from engines.registry import open_engine
from service.batching.batcher import Batcher
from service.batching.types import Paused
from service.http.app import create_app
from service.runtime.lifecycle import Serving
from service.runtime.model import LoadedGraph
from service.settings import Settings
from tests.service.telemetry.test_metrics import value
from tests.support.images import encode, photograph
from tests.support.workshop import Gate, Hang, Workshop, engines_from_a_workshop, once, sticky, wrong

IMAGE = encode(photograph(96, 80, seed=3), "JPEG")


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    with engines_from_a_workshop(monkeypatch) as made:
        yield made


@dataclass
class Running:
    """The application in this event loop."""

    app: FastAPI
    client: httpx.AsyncClient

    @property
    def serving(self) -> Serving:
        serving: Serving = self.app.state.serving
        return serving

    @property
    def graph(self) -> LoadedGraph:
        return self.serving.models.get(None).graphs["classify"]

    async def ready(self) -> bool:
        return (await self.client.get("/health/ready")).status_code == 200

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    async def until_state(self, state: str) -> None:
        await self.until(lambda: self.serving.state == state)

    async def classify(self, path: str = "/classify", **params: str) -> httpx.Response:
        return await self.client.post(path, content=IMAGE, params={"top_k": "10"} | params)

    async def count(self, name: str, **labels: str) -> float:
        return value((await self.client.get("/metrics")).text, name, **labels) or 0


@asynccontextmanager
async def running(artifact: Path, **settings: Any) -> AsyncIterator[Running]:
    usual = dict(
        model=(str(artifact),), engine="onnxruntime", precision="fp32", device="cpu", threads=1,
        max_batch_size=2, check_interval=0, access_log=False,
    )  # fmt: skip
    app = create_app(Settings.model_validate(usual | settings))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as client,
    ):
        here = Running(app, client)
        await here.until_state("ready")
        yield here


@pytest.fixture(scope="module")
def expected(artifact: Path) -> NDArray[Any]:
    """The logits of IMAGE."""
    manifest = read_manifest(artifact)
    graph = manifest.graph("classify")
    assert graph is not None
    engine = open_engine("onnxruntime", artifact / graph.file, "fp32", EngineOptions("cpu", threads=1))
    return engine.run({"images": preprocess(IMAGE, manifest.preprocessing).pixels[None]})["logits"][0]


def is_right(answer: httpx.Response, expected: NDArray[Any]) -> bool:
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["results"][0]["predictions"]
    logits = {prediction["index"]: prediction["logit"] for prediction in predictions}
    return np.allclose([logits[n] for n in range(len(expected))], expected, atol=1e-3)


def code_of(answer: httpx.Response) -> str:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    return str(answer.json()["code"])


def test_an_engine_that_answers_wrong_is_found_and_rebuilt(
    artifact: Path, workshop: Workshop, expected: NDArray[Any]
) -> None:
    async def check() -> None:
        async with running(artifact, check_interval=0.01) as server:
            assert is_right(await server.classify(), expected)
            workshop.may_open.clear()
            [broken] = workshop.now()
            broken.fault = wrong
            await server.until_state("unhealthy")
            answer = await server.client.get("/health/ready")
            assert code_of(answer) == "not_ready"
            # Which graph, and not what an engine may have said: that is in the log, for anybody may ask here.
            assert answer.json()["detail"] == "The server is unhealthy: resnet20 classify."
            assert (await server.client.get("/v2/health/ready")).status_code == 503
            assert (await server.client.get("/health/live")).status_code == 200
            assert await server.count("residuum_ready") == 0
            assert await server.count("residuum_state", state="unhealthy") == 1
            await server.until(lambda: broken.closed == 1)  # paused by now
            assert [code_of(await server.classify()) for _ in range(3)] == ["engine_failed"] * 3

            workshop.may_open.set()
            await server.until_state("ready")
            assert await server.ready()
            assert is_right(await server.classify(), expected)
            labels = dict(model="resnet20", graph="classify")
            assert await server.count("residuum_engine_rebuilds_total", **labels) == 1
            assert await server.count("residuum_golden_checks_total", **labels, result="failed") == 1
            assert await server.count("residuum_golden_checks_total", **labels, result="passed") >= 1
            assert await server.count("residuum_ready") == 1
            assert len(workshop.now()) == 1

    asyncio.run(check())


def test_a_sticky_error_makes_it_unhealthy_until_the_engine_is_rebuilt(
    artifact: Path, workshop: Workshop, expected: NDArray[Any]
) -> None:
    """The first request that meets it finds it: no check is due for long."""

    async def check() -> None:
        async with running(artifact) as server:
            workshop.may_open.clear()
            workshop.now()[0].fault = sticky
            assert code_of(await server.classify()) == "engine_failed"
            await server.until_state("unhealthy")
            assert code_of(await server.classify()) == "engine_failed"
            workshop.may_open.set()
            await server.until_state("ready")
            assert is_right(await server.classify(), expected)

    asyncio.run(check())


def test_what_fails_once_is_checked_and_not_rebuilt(
    artifact: Path, workshop: Workshop, expected: NDArray[Any]
) -> None:
    async def check() -> None:
        async with running(artifact) as server:
            workshop.now()[0].fault = once
            assert code_of(await server.classify()) == "engine_failed"
            passed = dict(model="resnet20", graph="classify", result="passed")
            while await server.count("residuum_golden_checks_total", **passed) < 1:
                await asyncio.sleep(0)
            assert server.serving.state == "ready"
            assert is_right(await server.classify(), expected)
            assert len(workshop.engines) == 3  # one a graph, from the start
            assert not workshop.engines[0].closed

    asyncio.run(check())


def test_an_engine_that_hangs_is_left_alone_and_replaced(
    artifact: Path, workshop: Workshop, expected: NDArray[Any]
) -> None:
    async def check() -> None:
        async with running(artifact, hang_timeout=0.1) as server:
            hang = Hang()
            [hung] = workshop.now()
            hung.fault = hang
            workshop.may_open.clear()
            lost = asyncio.create_task(server.classify())
            assert code_of(await lost) == "engine_failed"
            assert hang.held.is_set()
            await server.until_state("unhealthy")
            assert not await server.ready()
            workshop.may_open.set()
            await server.until_state("ready")
            assert is_right(await server.classify(), expected)
            assert not hung.closed  # its memory may still be written to
            hang.go_on.set()
            await server.until(hang.came_back.is_set)  # with wrong logits, for nobody
            for _ in range(3):
                assert is_right(await server.classify(), expected)
            assert await server.count("residuum_queue_entries", model="resnet20", graph="classify") == 0
            assert (
                await server.count("residuum_failed_batches_total", model="resnet20", graph="classify") == 1
            )

    asyncio.run(check())


def test_a_check_that_passes_does_not_stand_for_a_batch_that_hangs(
    artifact: Path, workshop: Workshop, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check() -> None:
        async with running(artifact, threads=2, instances=2) as server:
            hangs, slow = Hang(), Gate()
            faults = iter([hangs, slow])
            [engine] = workshop.now()
            engine.fault = lambda engine, inputs: next(faults)(engine, inputs)
            lost = asyncio.create_task(server.classify())
            await server.until(hangs.held.is_set)
            server.serving._monitor.suspect(server.graph)
            await server.until(slow.held.is_set)
            engine.fault = None
            workshop.may_open.clear()
            monitor, [scheduler] = server.serving._monitor, server.serving.models.devices.schedulers
            monitor._give_up(scheduler.running()[0], scheduler)
            assert code_of(await lost) == "engine_failed"
            assert server.serving.state == "unhealthy"
            slow.go_on.set()
            workshop.may_open.set()
            await server.until_state("ready")
            assert len(workshop.now()) == 2  # the one that hangs is left alone
            assert is_right(await server.classify(), expected)
            hangs.go_on.set()

    asyncio.run(check())


def test_rebuilding_is_tried_until_it_works(
    artifact: Path, workshop: Workshop, expected: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.monitor.RETRY_S", (0.001,))

    async def check() -> None:
        async with running(artifact) as server:
            workshop.failures = [
                EngineError("no memory"),
                RuntimeError("what nobody foresaw"),
                OSError("gone"),
            ]
            workshop.now()[0].fault = sticky
            assert code_of(await server.classify()) == "engine_failed"
            await server.until(lambda: not workshop.failures)
            await server.until_state("ready")
            assert is_right(await server.classify(), expected)

    asyncio.run(check())


def is_paused(batcher: Batcher) -> bool:
    try:
        batcher.check_room(1)
    except Paused:
        return True
    return False


def test_what_waits_is_served_by_the_new_engine(
    artifact: Path, workshop: Workshop, expected: NDArray[Any]
) -> None:
    async def check() -> None:
        async with running(artifact, max_batch_size=1) as server:
            hang = Hang()
            workshop.now()[0].fault = hang
            first = asyncio.create_task(server.classify())
            await server.until(hang.held.is_set)
            waiting = [asyncio.create_task(server.classify()) for _ in range(4)]
            await server.until(lambda: server.graph.batcher.num_waiting == 4)
            workshop.now()[0].fault = sticky  # of what comes after the batch that hangs
            rebuild = asyncio.create_task(asyncio.to_thread(server.graph.rebuild))
            await server.until(lambda: is_paused(server.graph.batcher))
            hang.go_on.set()
            await rebuild
            await first  # of the old engine, before anybody knew
            for each in waiting:
                assert is_right(await each, expected)

    asyncio.run(check())


def test_other_graphs_serve_on_meanwhile(
    artifact: Path, embedded: Path, workshop: Workshop, expected: NDArray[Any]
) -> None:
    async def check() -> None:
        models = (str(artifact), str(embedded))
        async with running(artifact, model=models, check_interval=0.01) as server:
            workshop.may_open.clear()
            workshop.now()[0].fault = sticky
            assert code_of(await server.classify()) == "engine_failed"
            await server.until_state("unhealthy")
            other = read_manifest(embedded).name
            assert (await server.classify(model=other)).status_code == 200
            assert (await server.classify("/introspect", maps="none")).status_code == 200
            # They are also checked on.
            labels = dict(model=other, graph="classify", result="passed")
            seen = await server.count("residuum_golden_checks_total", **labels)
            async with asyncio.timeout(60):
                while await server.count("residuum_golden_checks_total", **labels) < seen + 3:
                    await asyncio.sleep(0.01)
            assert server.serving.state == "unhealthy"
            workshop.may_open.set()
            await server.until_state("ready")
            assert is_right(await server.classify(), expected)

    asyncio.run(check())


@pytest.mark.parametrize("which", [0, 1])
def test_where_an_image_alone_has_an_engine_of_its_own_both_are_checked(
    artifact: Path,
    workshop: Workshop,
    expected: NDArray[Any],
    monkeypatch: pytest.MonkeyPatch,
    which: int,
) -> None:
    monkeypatch.setattr("engines.selection.trial.best_count", lambda loaded_ms: 2)
    monkeypatch.setattr("service.runtime.opening.WORTH_ALONE_MS", -math.inf)

    async def check() -> None:
        async with running(artifact, threads=2, check_interval=0.01) as server:
            both = workshop.now()
            assert [engine.info.instances for engine in both] == [1, 2]
            both[which].fault = wrong
            await server.until(lambda: len(workshop.engines) == 8)  # two of classify are new
            await server.until_state("ready")
            assert [engine.closed for engine in both] == [1, 1]
            assert is_right(await server.classify(), expected)

    asyncio.run(check())


def test_an_engine_that_gains_an_image_alone_too_little_is_not_opened(
    artifact: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.selection.trial.best_count", lambda loaded_ms: 2)
    monkeypatch.setattr("service.runtime.opening.WORTH_ALONE_MS", math.inf)

    async def check() -> None:
        async with running(artifact, threads=2, check_interval=0):
            assert {engine.info.instances for engine in workshop.now()} == {2}

    asyncio.run(check())


def test_a_model_that_is_unloaded_while_it_is_broken_is_forgotten(
    artifact: Path, embedded: Path, workshop: Workshop
) -> None:
    async def check() -> None:
        models = (str(embedded), str(artifact))
        async with running(artifact, model=models) as server:
            workshop.may_open.clear()
            broken = workshop.now()[1]
            broken.fault = sticky
            assert code_of(await server.classify(model="resnet20")) == "engine_failed"
            await server.until_state("unhealthy")
            await server.serving.changes.unload_model("resnet20")
            assert server.serving.state == "ready"
            workshop.may_open.set()
            await server.until(lambda: len(workshop.now()) == 1)  # nothing of it is left open
            assert (await server.classify()).status_code == 200

    asyncio.run(check())


def test_a_model_that_is_unloaded_while_a_batch_hangs_is_left_alone(
    artifact: Path, embedded: Path, workshop: Workshop
) -> None:
    """A session that is taken away under a run would bring the process down."""

    async def check() -> None:
        models = (str(embedded), str(artifact))
        async with running(artifact, model=models, threads=2, instances=2, hang_timeout=0.5) as server:
            hang = Hang()
            hung = workshop.now()[1]
            hung.fault = hang
            lost = asyncio.create_task(server.classify(model="resnet20"))
            await server.until(hang.held.is_set)
            lost.cancel()  # its lease ends
            await server.serving.changes.unload_model("resnet20")
            introspect = workshop.now("introspect")[1]
            await server.until(lambda: introspect.closed == 1)  # after classify, which was given up
            assert not hung.closed
            assert (await server.classify()).status_code == 200
            hang.go_on.set()

    asyncio.run(check())


def test_the_end_comes_also_while_an_engine_is_broken(artifact: Path, workshop: Workshop) -> None:
    async def check() -> None:
        async with running(artifact) as server:
            workshop.failures = [EngineError("no memory")]
            workshop.now()[0].fault = sticky
            assert code_of(await server.classify()) == "engine_failed"
            await server.until(lambda: not workshop.failures)

    asyncio.run(check())
