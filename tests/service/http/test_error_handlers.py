"""A request that fails leaves nothing behind that waits for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.types import Message

from service.batching.types import DeadlineMissed, QueueFull
from service.errors import NotReady, Overloaded
from service.http import waiting
from service.http.app import create_app
from service.http.error_handlers import answer_to
from service.http.waiting import CLIENT, SLOWED_S, Client, Connection
from service.settings import Settings
from tests.support.images import encode, photograph


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def ready(settings: Settings) -> AsyncIterator[FastAPI]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        while app.state.serving.state == "loading":
            await asyncio.sleep(0.01)
        assert app.state.serving.state == "ready"
        yield app


async def status(app: FastAPI, path: str, body: bytes, leaves: bool = False, query: str = "") -> int:
    """Return the status of the answer to a POST whose body comes in one piece, as the very object."""
    client = Client()
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    if leaves:
        asyncio.get_running_loop().call_soon(client.leave)
    answers: list[Message] = []

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        assert app.state.serving.held_bytes.num_bytes == 0  # however slowly the client reads
        answers.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/jpeg")],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        CLIENT: client,
    }
    await app(scope, receive, send)
    found: int = answers[0]["status"]
    return found


async def settled(count: Callable[[], int], before: int) -> int:
    """Return the count when threads have let go of what they still had in their hands."""
    until = time.monotonic() + 20
    while count() > before and time.monotonic() < until:
        await asyncio.sleep(0.001)
    return count()


def too_late(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every image be too late when a thread of the pool begins it."""
    decoders = app.state.serving.decoders
    monkeypatch.setattr(decoders, "preprocess", partial(_late, decoders.preprocess))


def _late(preprocess: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return preprocess(*args, **options | {"deadline": 0.0, "late": lambda: DeadlineMissed(1.0)})


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("path", ["/classify", "/introspect"])
def test_a_failed_request_lets_go_of_its_file(
    cache_bytes: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with ready(Settings(cache_bytes=cache_bytes, access_log=False)) as app:
            for number, kind in enumerate(("good", "bad", "leaves", "late")):
                if kind == "late":
                    too_late(app, monkeypatch)
                file = encode(photograph(60, 80 + number), "jpeg")  # none is in the cache
                if kind == "bad":
                    file = file[:500]
                count = partial(sys.getrefcount, file)
                before = count()
                answer = await status(app, path, file, leaves=kind == "leaves")
                assert answer == {"good": 200, "bad": 422, "leaves": 499, "late": 503}[kind]
                assert await settled(count, before) == before, kind

    asyncio.run(main())


def test_who_does_not_wait_is_answered_late_wherever_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(waiting.asyncio, "sleep", pause)  # type: ignore[attr-defined]
    connection = Connection()
    for error in (Overloaded("Full."), QueueFull(3), NotReady("Not yet."), DeadlineMissed(2)):
        request = Request({"type": "http", "path": "/classify", "headers": [], CLIENT: Client(connection)})
        assert asyncio.run(answer_to(request, error)).status_code == 503
    assert len(pauses) == 2
    assert all(0 < seconds <= SLOWED_S for seconds in pauses)
