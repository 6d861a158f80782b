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
from service.http.app import create_app
from service.http.middleware.gate import Accepted, Gate
from service.http.middleware.shedding import Shedding
from service.http.policy import CALL
from service.runtime.lifecycle import Serving
from service.runtime.load import HeldBytes
from service.settings import Settings

TABLE = create_app(Settings()).state.table


class FullOf:
    """A server whose queues are full for a model and some kinds of graphs; it notes what it is asked."""

    def __init__(self, name: str, *kinds: str) -> None:
        self.models = self.execution = self
        self.settings = Settings()
        self.held_bytes = HeldBytes(1000)
        self.asked: list[tuple[str, str, float]] = []
        self._full = [(name, kind) for kind in kinds]

    def get(self, name: str | None) -> SimpleNamespace:
        if name == "nix":
            raise UnknownModel("There is no model named 'nix'.")
        kinds = ["classify", "introspect", "attribute"]
        graphs = kinds[: {"bare": 1, "old": 2}.get(name or "", 3)]
        return SimpleNamespace(name=name or "default", graphs=graphs)

    def deadline(self, timeout_ms: int | None) -> float:
        return time.monotonic() + min(timeout_ms or 30_000, 30_000) / 1000

    def check_room(self, model: SimpleNamespace, kind: str, deadline: float) -> None:
        self.asked.append((model.name, kind, round(deadline - time.monotonic())))
        if (model.name, kind) in self._full:
            raise Overloaded("Full.", 3)


def ask(
    server: FullOf, path: str, query: str = "", method: str = "POST", length: int = 0
) -> tuple[int, Any, Scope]:
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
        "headers": [(b"content-length", str(length).encode())],
        "state": {},
        CALL: TABLE.find(method, path),
    }
    checks = [Shedding(cast(Serving, server))]
    asyncio.run(Gate(app, lambda _: None, checks, Accepted())(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body) if body else None, scope


BOTH = ("introspect", "attribute")


@pytest.mark.parametrize(
    ("path", "query", "name", "kinds"),
    [
        ("/classify", "", "default", ("classify",)),
        ("/classify", "top_k=3&model=resnet50", "resnet50", ("classify",)),
        ("/introspect", "model=resnet50&quantities=lens", "resnet50", BOTH),
        ("/introspect", "", "default", BOTH),
        ("/introspect", "model=old", "old", ("introspect",)),
        ("/v2/models/resnet50/infer", "", "resnet50", ("classify",)),
        ("/v2/models/resnet50/versions/1/infer", "", "resnet50", ("classify",)),
    ],
)
def test_refused_without_reading(path: str, query: str, name: str, kinds: tuple[str, ...]) -> None:
    status, body, scope = ask(FullOf(name, *kinds), path, query)
    assert status == 503
    assert body == {"error": "Full."} if path.startswith("/v2") else body["code"] == "overloaded"
    assert (scope["state"]["model"], scope["state"]["problem"]) == (name, "overloaded")
    template = path.replace("resnet50", "{name}").replace("/1/", "/{version}/")
    assert scope["route"].path == template  # which metrics and logs name


@pytest.mark.parametrize("full", BOTH)
@pytest.mark.parametrize("query", ["", "quantities=ratio", "quantities=lens"])
def test_while_one_of_the_graphs_has_room_the_route_decides(full: str, query: str) -> None:
    """Which of them runs depends on more than is known here: form, parameters, variant."""
    assert ask(FullOf("default", full), "/introspect", query)[0] == 200


@pytest.mark.parametrize(
    ("path", "query", "method"),
    [
        ("/classify", "model=other", "POST"),  # it has room
        ("/classify", "model=nix", "POST"),  # the route says that there is none
        ("/classify", "", "OPTIONS"),
        ("/models/resnet50/load", "", "POST"),
        ("/v2/models/resnet50/ready", "", "GET"),
        ("/introspect", "", "PUT"),
        ("/introspect", "model=bare", "POST"),
    ],
)
def test_everything_else_passes(path: str, query: str, method: str) -> None:
    assert ask(FullOf("default", "classify"), path, query, method)[:2] == (200, None)


def test_the_clients_deadline_counts() -> None:
    server = FullOf("")
    ask(server, "/classify", "timeout_ms=5000")
    ask(server, "/classify", "xtimeout_ms=5000")
    ask(server, "/classify", "timeout_ms=nonsense")  # 422 by the route
    assert server.asked == [
        ("default", "classify", 5),
        ("default", "classify", 30),
        ("default", "classify", 30),
    ]


def test_with_a_cache_the_answer_may_be_known() -> None:
    server = FullOf("default", "classify")
    server.settings = Settings(cache_bytes=1)
    assert ask(server, "/classify")[0] == 200
    server.settings = Settings()
    assert ask(server, "/classify")[0] == 503


def test_what_waits_takes_no_more_memory_than_it_may() -> None:
    server = FullOf("nix")
    assert ask(server, "/classify", length=1000)[0] == 200
    other = server.held_bytes.hold()
    other.add(1)
    other.complete()
    status, problem, scope = ask(server, "/classify", length=1000)
    assert (status, problem["code"], scope["route"].path) == (503, "overloaded", "/classify")
    assert ask(server, "/classify", length=10**30)[0] == 200  # the route says that it is too long
    assert ask(server, "/models", method="GET", length=1000)[0] == 200
    other.release()
    assert ask(server, "/classify", length=1000)[0] == 200
