"""So many requests a second: who counts together, how long to wait, and what is never counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from engines.settings import SettingsError
from service.http.middleware.access import CALLER
from service.http.middleware.gate import Accepted, Gate
from service.http.middleware.rate_limit import MAX_CALLERS, RateLimit, network_of, rate_limit
from service.http.policy import CALL, Call, Policy
from service.settings import Settings
from tests.support.live import live_server


class Clock:
    """`time` is in milliseconds."""

    def __init__(self) -> None:
        self.time = 5_000_000

    def now_ns(self) -> int:
        return self.time * 1_000_000


class Limited:
    """An application behind the limit, and a clock that only the test moves."""

    def __init__(self, per_second: float) -> None:
        self.limit = RateLimit(per_second)
        self.gate = Gate(self._answer, lambda _: None, [self.limit], Accepted())
        self.clock = Clock()
        self.limit._now_ns = self.clock.now_ns

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def call(self, caller: bytes | None = b"key", client: str = "192.0.2.1", **scope: Any) -> Message:
        """The first message of the answer; the body is never asked for."""
        sent: list[Message] = []

        async def receive() -> Message:
            raise AssertionError("the body is read")

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "path": "/classify", "client": (client, 1), CALLER: caller} | scope
        asyncio.run(self.gate(scope, receive, send))
        return sent[0]

    def statuses(self, count: int, **how: Any) -> list[int]:
        return [self.call(**how)["status"] for _ in range(count)]


def retry_after(answer: Message) -> int:
    return int(dict(answer["headers"])[b"retry-after"])


def test_a_burst_of_one_second_then_the_steady_rate() -> None:
    limited = Limited(10)
    assert limited.statuses(12) == [200] * 10 + [429] * 2
    limited.clock.time += 99
    assert limited.statuses(1) == [429]
    limited.clock.time += 1
    assert limited.statuses(2) == [200, 429]
    limited.clock.time += 60_000  # no more than a burst is ever saved up
    assert limited.statuses(12) == [200] * 10 + [429] * 2


@pytest.mark.parametrize(("per_second", "wait_s"), [(10, 1), (0.4, 3), (0.01, 100)])
def test_retry_after_is_kept_word_of(per_second: float, wait_s: int) -> None:
    limited = Limited(per_second)
    limited.statuses(max(1, int(per_second)))
    answer = limited.call()
    assert (answer["status"], retry_after(answer)) == (429, wait_s)
    limited.clock.time += wait_s * 1000
    assert limited.statuses(1) == [200]
    if per_second < 1:  # and it is no longer than need be
        limited.clock.time += int(1000 / per_second) - 1
        assert limited.statuses(1) == [429]


def test_callers_count_apart() -> None:
    limited = Limited(1)
    assert limited.statuses(2, caller=b"one") == [200, 429]
    assert limited.statuses(2, caller=b"two", client="192.0.2.1") == [200, 429]
    assert limited.statuses(2, caller=None, client="192.0.2.1") == [200, 429]
    assert limited.statuses(2, caller=None, client="192.0.2.2") == [200, 429]
    assert limited.statuses(2, caller=b"one", client="192.0.2.9") == [429, 429]  # one key, whatever address


def test_a_route_that_is_not_limited_is_not_counted() -> None:
    assert Limited(1).statuses(5, **{CALL: Call(Policy(limited=False))}) == [200] * 5


def test_callers_are_forgotten_when_there_are_too_many() -> None:
    limited = Limited(1)
    assert limited.statuses(2, caller=b"mine") == [200, 429]
    for number in range(MAX_CALLERS - 1):
        limited.limit._take(f"192.0.2.{number}")
    assert limited.statuses(1, caller=b"mine") == [429]  # remembered still, and now the newest
    for number in range(MAX_CALLERS + 100):
        limited.limit._take(f"198.51.100.{number}")
    assert len(limited.limit._full_at_ns) == MAX_CALLERS
    assert limited.statuses(1, caller=b"mine") == [200]


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002::/64"),
        ("2001:db8:1:2::9", "20010db800010002::/64"),
        ("fe80::1%eth0", "fe80000000000000::/64"),
        ("what:ever", "what:ever"),
    ],
)
def test_whom_an_address_stands_for(host: str, network: str) -> None:
    assert network_of((host, 1)) == network


def test_no_address() -> None:
    assert network_of(None) == ""


@pytest.mark.parametrize("per_second", [1e-5, 1e-320, 1_000_001, float("inf")])
def test_what_is_no_limit(per_second: float) -> None:
    with pytest.raises(SettingsError, match=r"^--rate-limit \S+: from 0.0001 to 1,000,000 requests a second"):
        rate_limit(Settings(rate_limit=per_second))


@pytest.mark.parametrize("per_second", [1e-4, 1 / 3, 1_000_000])
def test_what_is_a_limit(per_second: float) -> None:
    assert Limited(per_second).statuses(1) == [200]
    assert len(rate_limit(Settings(rate_limit=per_second))) == 1


def test_no_limit_by_default() -> None:
    assert rate_limit(Settings()) == []


# The real server


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """Each key may ask once in 2,000 seconds, so that no machine is too slow for the test."""
    with (
        live_server(rate_limit=0.0005, api_key="one,two") as server,
        httpx.Client(base_url=server.url, timeout=60) as made,
    ):
        yield made


def test_over_http(client: httpx.Client) -> None:
    one, two = {"X-API-Key": "one"}, {"Authorization": "Bearer two"}
    assert client.get("/models", headers=one).status_code == 200
    refused = client.post("/classify", content=b"not read", headers=one)
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["code"] == "rate_limited"
    assert 1990 < int(refused.headers["retry-after"]) <= 2000
    assert client.get("/v2/models/x", headers=one).json() == {"error": refused.json()["detail"]}
    assert client.get("/models", headers=two).status_code == 200
    assert client.get("/models", headers={"X-API-Key": "wrong"}).status_code == 401
    assert 'residuum_refused_total{code="rate_limited"} 2.0' in client.get("/metrics").text
    for path in ("/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
        assert [client.get(path, headers=one).status_code for _ in range(3)] == [200] * 3
