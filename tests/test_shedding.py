"""What there is no room for is refused before its body is read, by whatever path it comes."""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.types import Message, Scope

from service.errors import Overloaded, UnknownModel
from service.serving import Serving
from service.settings import Settings
from service.shedding import Shedding


class FullOf:
    """A server whose queue is full for one model and kind of graph; it notes what it is asked."""

    def __init__(self, full: tuple[str, str]) -> None:
        self.models = self
        self.settings = Settings()
        self.asked: list[tuple[str, str, float]] = []
        self._full = full

    def get(self, name: str | None) -> SimpleNamespace:
        if name == "nix":
            raise UnknownModel("There is no model named 'nix'.")
        return SimpleNamespace(name=name or "default")

    def deadline(self, timeout_ms: int | None) -> float:
        return time.monotonic() + min(timeout_ms or 30_000, 30_000) / 1000

    def check_room(self, model: SimpleNamespace, kind: str, deadline: float) -> None:
        self.asked.append((model.name, kind, round(deadline - time.monotonic())))
        if (model.name, kind) == self._full:
            raise Overloaded("Full.", 3)


def ask(server: FullOf, path: str, query: str = "", method: str = "POST") -> tuple[int, Any, Scope]:
    """Status and body of the refusal, or 200 and None where the application is reached."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        raise AssertionError("the body is read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "state": {},
    }
    asyncio.run(Shedding(app, cast(Serving, server))(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body) if body else None, scope


@pytest.mark.parametrize(
    ("path", "query", "full"),
    [
        ("/classify", "", ("default", "classify")),
        ("/classify", "top_k=3&model=resnet50", ("resnet50", "classify")),
        ("/introspect", "model=resnet50&maps=none", ("resnet50", "introspect")),
        ("/v2/models/resnet50/infer", "", ("resnet50", "classify")),
        ("/v2/models/resnet50/versions/1/infer", "", ("resnet50", "classify")),
    ],
)
def test_refused_without_reading(path: str, query: str, full: tuple[str, str]) -> None:
    status, body, scope = ask(FullOf(full), path, query)
    assert status == 503
    assert body == {"error": "Full."} if path.startswith("/v2") else body["code"] == "overloaded"
    assert (scope["state"]["model"], scope["state"]["problem"]) == (full[0], "overloaded")
    assert scope["route"].path in ("/classify", "/introspect", "/v2/models/{name}/infer")


@pytest.mark.parametrize(
    ("path", "query", "method"),
    [
        ("/classify", "model=other", "POST"),  # it has room
        ("/classify", "model=nix", "POST"),  # the route says that there is none
        ("/classify", "", "OPTIONS"),
        ("/models/resnet50/load", "", "POST"),
        ("/v2/models/resnet50/ready", "", "GET"),
        ("/introspect", "", "PUT"),
    ],
)
def test_everything_else_passes(path: str, query: str, method: str) -> None:
    assert ask(FullOf(("default", "classify")), path, query, method)[:2] == (200, None)


def test_the_clients_deadline_counts() -> None:
    server = FullOf(("", ""))
    ask(server, "/classify", "timeout_ms=5000")
    ask(server, "/classify", "xtimeout_ms=5000")
    ask(server, "/classify", "timeout_ms=nonsense")  # 422 by the route
    assert server.asked == [
        ("default", "classify", 5),
        ("default", "classify", 30),
        ("default", "classify", 30),
    ]


def test_with_a_cache_the_answer_may_be_known() -> None:
    server = FullOf(("default", "classify"))
    server.settings = Settings(cache_bytes=1)
    assert ask(server, "/classify")[0] == 200
    server.settings = Settings()
    assert ask(server, "/classify")[0] == 503
