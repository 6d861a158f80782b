"""Answers given again: only right ones, made once, and nobody who waits for one can harm another."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from artifact.image_bytes import ImageError
from artifact.manifest import Label, read_manifest
from artifact.postprocess import top_predictions
from service.errors import Overloaded
from service.http.routes.classify import _Classified
from service.http.routes.introspect import _Introspected
from service.runtime.cache import ENTRY_BYTES, AnswerCache, digest
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from tests.service.runtime.test_repository import change_manifest
from tests.service.telemetry.test_metrics import scraped, value
from tests.service.test_field import a_server
from tests.support.images import encode, photograph
from tests.support.live import LiveServer, live_server

ANSWER_BYTES = 100
A, B, C = ([name.encode()] for name in "abc")


@dataclass(frozen=True)
class Answer:
    text: str
    num_bytes: int = ANSWER_BYTES


class Kitchen:
    """Makes answers when it is let, and counts them."""

    def __init__(self, max_answers: int = 10) -> None:
        self.metrics = Metrics()
        self.cache = AnswerCache(max_answers * (ANSWER_BYTES + ENTRY_BYTES), self.metrics)
        self.begun = 0
        self.deadlines: list[float] = []  # of the answers that were begun
        self.cancelled = 0
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.errors: list[Exception] = []  # of the answers to come

    async def make(self, deadline: float) -> Answer:
        self.begun += 1
        self.deadlines.append(deadline)
        answer = Answer(str(self.begun))
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        return answer

    async def get(self, images: list[bytes], parameters: str = "", deadline: float = 60) -> tuple[str, bool]:
        answer, cached = await self.cache.get(images, (parameters,), self.make, deadline)
        return answer.text, cached

    async def ask(self, images: list[bytes], deadline: float = 60) -> asyncio.Task[tuple[str, bool]]:
        """A request that waits by now."""
        task = asyncio.create_task(self.get(images, deadline=deadline))
        await settle()
        return task

    def counted(self, result: str) -> float:
        return value(scraped(self.metrics), "residuum_cache_lookups_total", result=result) or 0


async def settle() -> None:
    """All that can go on has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


async def outcome(task: Awaitable[Any]) -> Any:
    return (await asyncio.gather(task, return_exceptions=True))[0]


@in_a_loop
async def test_an_answer_is_made_once_and_given_again() -> None:
    kitchen = Kitchen()
    assert [await kitchen.get(A), await kitchen.get(A)] == [("1", False), ("1", True)]
    assert await kitchen.get(A, "otherwise") == ("2", False)
    assert await kitchen.get([*A, *B]) == ("3", False)
    assert await kitchen.get([*B, *A]) == ("4", False)
    assert (kitchen.counted("hit"), kitchen.counted("miss")) == (1, 4)


def test_no_two_lists_of_images_are_alike() -> None:
    lists = [[b""], [b"", b""], [b"ab"], [b"a", b"b"], [b"b", b"a"], []]
    assert len({digest(images) for images in lists}) == len(lists)


@in_a_loop
async def test_large_images_are_hashed_as_small_ones_are() -> None:
    kitchen = Kitchen()
    large = bytes(3 * 2**20)
    assert [await kitchen.get([large]), await kitchen.get([large])] == [("1", False), ("1", True)]
    assert await kitchen.get([large[:-1] + b"x"]) == ("2", False)


@in_a_loop
async def test_with_no_room_nothing_is_kept_or_shared() -> None:
    kitchen = Kitchen(max_answers=0)
    kitchen.go_on.clear()
    tasks = [await kitchen.ask(A), await kitchen.ask(A)]
    kitchen.go_on.set()
    assert [await task for task in tasks] == [("1", False), ("2", False)]
    assert kitchen.counted("hit") == kitchen.counted("miss") == 0


@in_a_loop
async def test_the_one_used_longest_ago_goes_first() -> None:
    kitchen = Kitchen(max_answers=2)
    for images in (A, B, A, C):  # B goes
        await kitchen.get(images)
    assert [await kitchen.get(A), await kitchen.get(C), await kitchen.get(B)] == [
        ("1", True),
        ("3", True),
        ("4", False),
    ]


@in_a_loop
async def test_an_answer_that_is_too_large_is_given_but_not_kept() -> None:
    kitchen = Kitchen(max_answers=2)

    async def large(deadline: float) -> Answer:
        return Answer("large", 10 * ANSWER_BYTES + 10 * ENTRY_BYTES)

    await kitchen.get(A)
    for _ in range(2):
        answer, cached = await kitchen.cache.get(B, (), large, 60)
        assert (answer.text, cached) == ("large", False)
    assert await kitchen.get(A) == ("1", True)


def classified(number: int, num_images: int, top_k: int) -> _Classified:
    logits = np.random.default_rng(number + 100).normal(size=200).astype(np.float32)
    labels = [Label(label="some label", wnid="n01440764")] * len(logits)
    results = [
        {
            "predictions": top_predictions(logits, labels, top_k),
            "image": {"format": "jpeg", "width": 1000 + number, "height": 2000 + number},
        }
        for _ in range(num_images)
    ]
    return _Classified(results, Stages(1.5 * number, 2.5 * number, 3.5 * number, 7))


def introspected(number: int) -> _Introspected:
    return _Introspected(bytes(1000 + number), Stages(1.5 * number, 2.5 * number, 3.5 * number, 7))


@pytest.mark.parametrize(
    "made",
    [
        introspected,
        lambda number: classified(number, 1, 1),
        lambda number: classified(number, 1, 200),
        lambda number: classified(number, 8, 5),
    ],
    ids=["introspect", "classify", "all classes", "images"],
)
def test_what_is_accounted_is_no_less_than_what_is_taken(made: Callable[[int], Any]) -> None:
    """However long the questions are."""

    async def check() -> None:
        cache = AnswerCache(10**9, Metrics())
        for number in range(-20, 400):
            if number == 0:  # what is made once has been made
                gc.collect()
                before, tables = tracemalloc.get_traced_memory()[0], cache._kept.currsize

            async def make(deadline: float, number: int = number) -> Any:
                return made(number)

            await cache.get([b"%d" % number], ("introspect", "x" * 10_000, number), make, 60)
            if number >= 0:
                taken = tracemalloc.get_traced_memory()[0] - before
                assert taken <= cache._kept.currsize, number
        assert cache._kept.currsize - tables < 2.5 * taken  # and not much more

    tracemalloc.start()
    try:
        asyncio.run(check())
    finally:
        tracemalloc.stop()


@in_a_loop
async def test_requests_in_flight_share_one_answer() -> None:
    kitchen = Kitchen()
    kitchen.go_on.clear()
    tasks = [await kitchen.ask(A) for _ in range(3)]
    other = await kitchen.ask(B)
    kitchen.go_on.set()
    assert [await task for task in tasks] == [("1", False), ("1", True), ("1", True)]
    assert await other == ("2", False)
    assert (kitchen.counted("hit"), kitchen.counted("miss")) == (2, 2)


@pytest.mark.parametrize("leaver", [0, 1])
def test_one_who_leaves_harms_nobody(leaver: int) -> None:
    async def check() -> None:
        kitchen = Kitchen()
        kitchen.go_on.clear()
        tasks = [await kitchen.ask(A), await kitchen.ask(A)]
        tasks.pop(leaver).cancel()
        await settle()
        kitchen.go_on.set()
        assert (await tasks[0])[0] == "1"
        assert (kitchen.begun, kitchen.cancelled) == (1, 0)
        assert await kitchen.get(A) == ("1", True)

    asyncio.run(check())


@in_a_loop
async def test_the_last_one_who_leaves_ends_the_work_and_the_next_begins_anew() -> None:
    kitchen = Kitchen()
    kitchen.go_on.clear()
    tasks = [await kitchen.ask(A), await kitchen.ask(A)]
    for task in tasks:
        task.cancel()
    newcomer = asyncio.create_task(kitchen.get(A))  # while the work is being cancelled
    await settle()
    assert kitchen.cancelled == 1
    kitchen.go_on.set()
    assert await newcomer == ("2", False)


@in_a_loop
async def test_errors_are_told_to_all_and_never_kept() -> None:
    kitchen = Kitchen()
    kitchen.go_on.clear()
    kitchen.errors = [ImageError("truncated_image", "It ends early.")]
    tasks = [await kitchen.ask(A), await kitchen.ask(A)]
    kitchen.go_on.set()
    for task in tasks:
        assert isinstance(await outcome(task), ImageError)
    assert await kitchen.get(A) == ("2", False)


@in_a_loop
async def test_those_with_more_time_ask_once_more_and_together() -> None:
    kitchen = Kitchen()
    kitchen.go_on.clear()
    kitchen.errors = [Overloaded("Full.")]
    tasks = [await kitchen.ask(A, deadline) for deadline in (5, 4, 5, 7, 9, 6)]
    kitchen.go_on.set()
    *refused, first, second, third = [await outcome(task) for task in tasks]
    assert [type(error) for error in refused] == [Overloaded] * 3
    assert sorted([first, second, third]) == [("2", False), ("2", True), ("2", True)]
    assert kitchen.deadlines == [5, 9]  # the most patient one's, whoever asks
    assert await kitchen.get(A) == ("2", True)


@in_a_loop
async def test_the_most_patient_one_may_leave() -> None:
    kitchen = Kitchen()
    kitchen.go_on.clear()
    kitchen.errors = [Overloaded("Full.")]
    tasks = [await kitchen.ask(A, deadline) for deadline in (5, 7, 9)]
    tasks.pop().cancel()
    await settle()
    kitchen.go_on.set()
    assert isinstance(await outcome(tasks[0]), Overloaded)
    assert await tasks[1] == ("2", False)
    assert kitchen.deadlines == [5, 7]


@pytest.mark.parametrize("later", [0, 0.001], ids=["at once", "one after another"])
def test_however_many_are_refused_the_answer_is_begun_twice_at_most(later: float) -> None:
    """Each wakes once for each attempt; otherwise a thousand that ask again would wake each other."""

    async def check() -> None:
        kitchen = Kitchen()
        kitchen.go_on.clear()
        kitchen.errors = [Overloaded("Full.") for _ in range(1000)]
        tasks = [asyncio.create_task(kitchen.get(A, deadline=5 + later * number)) for number in range(1000)]
        await settle()
        assert kitchen.begun == 1
        kitchen.go_on.set()
        assert all([isinstance(await outcome(task), Overloaded) for task in tasks])
        assert kitchen.begun == (2 if later else 1)

    asyncio.run(check())


def test_an_error_that_nobody_waits_for_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        kitchen = Kitchen()

        async def stubborn(deadline: float) -> Answer:
            try:
                await asyncio.Event().wait()
            finally:
                raise Overloaded("Full.")

        task = asyncio.create_task(kitchen.cache.get(A, (), stubborn, 60))
        await settle()
        task.cancel()
        assert isinstance(await outcome(task), asyncio.CancelledError)
        await settle()

    asyncio.run(check())
    gc.collect()
    assert not caplog.records


# Over HTTP


@pytest.fixture(scope="module")
def server(artifact: Path, embedded: Path) -> Iterator[LiveServer]:
    models = f"{embedded},{artifact}"
    with live_server(model=models, device="cpu", threads=1, max_batch_size=2, cache_bytes=200_000) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


def image(seed: int) -> bytes:
    return encode(photograph(96, 80, seed), "JPEG")


def test_cleared_it_forgets_and_keeps_nothing_that_was_begun_before() -> None:
    """An engine turned out wrong: what it has answered, and what it may be answering now."""

    async def scenario() -> None:
        kitchen = Kitchen()
        assert await kitchen.get(A) == ("1", False)
        kitchen.go_on.clear()
        begun = asyncio.create_task(kitchen.get(B))
        while kitchen.begun < 2:
            await asyncio.sleep(0)
        kitchen.cache.clear()
        kitchen.go_on.set()
        assert await begun == ("2", False)
        assert await kitchen.get(A) == ("3", False)
        assert await kitchen.get(B) == ("4", False)
        assert await kitchen.get(B) == ("4", True)

    asyncio.run(scenario())


def is_hit(answer: httpx.Response) -> bool:
    assert answer.status_code == 200, answer.text
    assert answer.headers.get("cache-status") in (None, "residuum; hit")
    return "cache-status" in answer.headers


def test_the_same_image_again_is_a_hit(client: httpx.Client) -> None:
    answers = [client.post("/classify", content=image(1)) for _ in range(2)]
    assert [is_hit(answer) for answer in answers] == [False, True]
    first, again = (answer.json() for answer in answers)
    assert first["results"] == again["results"]
    assert again["timing_ms"] == {"decode": 0, "queue": 0, "inference": 0} | {
        "total": again["timing_ms"]["total"]
    }
    assert first["timing_ms"]["inference"] > 0
    assert is_hit(client.post("/classify", files=[("image", image(1))]))
    assert not is_hit(client.post("/classify", content=image(2)))


def test_other_parameters_are_other_answers(client: httpx.Client, artifact: Path, embedded: Path) -> None:
    default, second = (read_manifest(path).name for path in (embedded, artifact))
    asked = [{}, {"top_k": "2"}, {"model": second}, {"model": second, "top_k": "2"}]
    answers = [client.post("/classify", content=image(3), params=params) for params in asked]
    assert not any(is_hit(answer) for answer in answers)
    seen = [(answer.json()["model"], len(answer.json()["results"][0]["predictions"])) for answer in answers]
    assert seen == [(default, 5), (default, 2), (second, 5), (second, 2)]
    for params, answer in zip(asked, answers, strict=True):
        again = client.post("/classify", content=image(3), params=params)
        assert is_hit(again)
        assert again.json()["results"] == answer.json()["results"]
    assert is_hit(client.post("/classify", content=image(3), params={"top_k": "5", "model": default}))


def test_introspect_has_answers_of_its_own(client: httpx.Client) -> None:
    for accept in ("application/json", "application/x-npz"):
        answers = [client.post("/introspect", content=image(1), headers={"accept": accept}) for _ in range(2)]
        assert [is_hit(answer) for answer in answers] == [False, True]
        assert answers[0].content == answers[1].content
        assert answers[1].headers["content-type"] == accept
        assert answers[1].headers["vary"] == "Accept"
    assert not is_hit(client.post("/introspect?top_k=3", content=image(1)))


def test_a_question_written_otherwise_is_the_same(client: httpx.Client) -> None:
    asked = [
        "blocks=stage1&quantities=rms,share&maps=none&target=3&gates=stage2:0.5,stage2:1",
        "target=03&maps=none&gates=&quantities=share,rms&blocks=" + ",".join(["stage1.0"] * 500 + ["stage1"]),
    ]
    answers = [client.post(f"/introspect?{query}", content=image(4)) for query in asked]
    assert [is_hit(answer) for answer in answers] == [False, True]
    assert answers[0].content == answers[1].content


def test_refusals_are_not_kept(client: httpx.Client) -> None:
    for _ in range(2):
        answer = client.post("/classify", content=b"no image")
        assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_image")
        assert "cache-status" not in answer.headers


def test_lookups_are_counted(client: httpx.Client) -> None:
    def counts() -> list[float]:
        text = client.get("/metrics").text
        return [value(text, "residuum_cache_lookups_total", result=result) or 0 for result in ("hit", "miss")]

    before = counts()
    for seed in (100, 100, 101):
        client.post("/classify", content=image(seed))
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [1, 2]


def test_what_is_kept_stays_within_the_limit(client: httpx.Client) -> None:
    """200,000 bytes hold about ninety answers of five predictions."""
    for seed in range(200, 300):
        assert not is_hit(client.post("/classify", content=image(seed)))
    assert is_hit(client.post("/classify", content=image(299)))
    assert not is_hit(client.post("/classify", content=image(200)))


def test_a_model_that_is_swapped_gives_no_answers_of_before(artifact: Path, tmp_path: Path) -> None:
    """Even if its version is called the same."""

    def label() -> tuple[str, bool]:
        answer = here.ask()
        return answer.json()["results"][0]["predictions"][0]["label"].split()[0], is_hit(answer)

    copy = Path(shutil.copytree(artifact, tmp_path / "resnet20"))
    with a_server(copy, cache_bytes=10**6, admin_key=("boss",)) as here:
        assert [label(), label()] == [("class", False), ("class", True)]
        change_manifest(copy, lambda manifest: [each.update(label="other") for each in manifest["labels"]])
        answer = here.client.post("/models/resnet20/load", headers={"x-api-key": "boss"})
        assert answer.status_code == 200, answer.text
        assert [label(), label()] == [("other", False), ("other", True)]
