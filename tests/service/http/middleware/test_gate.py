"""A client that comes back too early is answered late; others are not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from starlette.types import Message, Scope

from artifact.errors import ResiduumError
from service.batching.types import DeadlineMissed, QueueFull
from service.errors import NotReady, RateLimited
from service.http import waiting
from service.http.middleware.gate import Accepted, Gate
from service.http.waiting import CLIENT, SLOWED_S, Client, Connection


class Door:
    """A gate that refuses with one error, and the pauses that it makes instead of sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: ResiduumError | None) -> None:
        self.error = error
        self.accepted = Accepted()
        self.pauses: list[float] = []
        monkeypatch.setattr(waiting.asyncio, "sleep", self._pause)  # type: ignore[attr-defined]

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def _check(self, scope: Scope) -> None:
        if self.error is not None:
            raise self.error

    def knock(self, connection: Connection | None = None) -> str:
        """Return the code of the refusal, or "" if the request passed."""
        sent: list[Message] = []

        async def passed(scope: Scope, receive: object, send: Callable[[Message], object]) -> None:
            assert self.accepted.num_requests == 1

        async def receive() -> Message:
            raise AssertionError("the body is read")

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {"type": "http", "path": "/classify"}
        if connection is not None:
            scope[CLIENT] = Client(connection)
        made = Gate(passed, lambda _: None, [self._check], self.accepted)
        asyncio.run(made(scope, receive, send))
        assert self.accepted.num_requests == 0
        return str(json.loads(sent[1]["body"])["code"]) if sent else ""


@pytest.mark.parametrize("error", [QueueFull(3), DeadlineMissed(0.1)])
def test_only_who_does_not_wait_is_slowed(monkeypatch: pytest.MonkeyPatch, error: ResiduumError) -> None:
    door = Door(monkeypatch, error)
    hasty, other = Connection(), Connection()
    codes = {door.knock(hasty), door.knock(other)}
    assert door.pauses == []
    codes |= {door.knock(hasty), door.knock(hasty)}
    assert len(codes) == 1
    assert len(door.pauses) == 2
    assert all(0 < pause <= SLOWED_S for pause in door.pauses)
    other.retry_at = 0.0  # it has waited
    door.knock(other)
    assert len(door.pauses) == 2


def test_who_may_pass_is_never_slowed(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(monkeypatch, QueueFull(3))
    hasty = Connection()
    door.knock(hasty)
    door.error = None
    assert door.knock(hasty) == ""
    assert door.pauses == []


@pytest.mark.parametrize("error", [RateLimited("Too fast.", 5), NotReady("Not yet.")])
def test_other_refusals_are_not_held_back(monkeypatch: pytest.MonkeyPatch, error: ResiduumError) -> None:
    door = Door(monkeypatch, error)
    hasty = Connection()
    for _ in range(3):
        assert door.knock(hasty) in ("rate_limited", "not_ready")
    assert door.pauses == []


def test_another_server_than_ours_has_no_connections_to_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(monkeypatch, QueueFull(3))
    assert door.knock() == door.knock() == "overloaded"
    assert door.pauses == []
