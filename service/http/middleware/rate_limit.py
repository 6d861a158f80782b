"""So many requests a second for each key, or for each address where there are no keys.

A token bucket for each caller (pyrate-limiter's, on the monotonic clock), full at first: a burst of one
second's requests, then the steady rate. A route whose policy is not `limited` is not counted. Each worker
process counts for itself.
"""

from __future__ import annotations

import ipaddress
from math import ceil

from cachetools import LRUCache
from pyrate_limiter import MonotonicClock, Rate, RateItem, StateBucket, TokenBucket
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from engines.settings import SettingsError
from service.errors import RateLimited
from service.http.middleware.access import CALLER
from service.http.policy import policy_of
from service.http.problems import refuse
from service.settings import Settings

MAX_CALLERS = 10_000  # remembered at once; of those that are forgotten, the one longest silent is the first
MIN_PER_SECOND, MAX_PER_SECOND = 1e-4, 1_000_000
UNIT = 1000  # pyrate-limiter wants whole numbers: so many requests in so many milliseconds


def rate_limit(settings: Settings) -> list[Middleware]:
    """For the application's list; empty without a limit.

    Raises:
        SettingsError: nobody can mean such a limit.
    """
    per_second = settings.rate_limit
    if not per_second:
        return []
    if not MIN_PER_SECOND <= per_second <= MAX_PER_SECOND:
        raise SettingsError(
            f"--rate-limit {per_second:g}: from {MIN_PER_SECOND:g} to {MAX_PER_SECOND:,} requests a second; "
            "0 for no limit"
        )
    return [Middleware(RateLimit, per_second=per_second)]


class RateLimit:
    """429 with Retry-After for a caller that is too fast; answered before the body is read."""

    def __init__(self, app: ASGIApp, per_second: float) -> None:
        self.app = app
        self._per_second = per_second
        interval_ms = ceil(UNIT * 1000 / per_second)
        self._rate = Rate(UNIT, interval_ms, burst=max(1, int(per_second)))
        self._algorithm = TokenBucket()
        self._clock = MonotonicClock()
        self._buckets: LRUCache[bytes | str, StateBucket] = LRUCache(MAX_CALLERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and policy_of(scope).limited:
            wait_s = self._take(scope[CALLER] or network_of(scope["client"]))
            if wait_s > 0:
                error = RateLimited(f"More than {self._per_second:g} requests a second came.", wait_s)
                await refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _take(self, caller: bytes | str) -> float:
        """Count a request of this caller's; 0 if it may pass, else the seconds until the next one may."""
        bucket = self._buckets.get(caller)
        if bucket is None:
            bucket = self._buckets[caller] = StateBucket([self._rate], self._algorithm)
        item = RateItem("request", self._clock.now())
        if bucket.put(item):
            return 0.0
        wait_ms = bucket.waiting(item)
        assert isinstance(wait_ms, int)  # awaitable only of a bucket outside this process
        return max(1, wait_ms) / 1000


def network_of(client: tuple[str, int] | None) -> str:
    """Whom an address stands for: an IPv4 address for itself, one of IPv6 for its /64, which one host has."""
    if client is None:
        return ""
    host = client[0]
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{int(address) >> 64:x}::/64"
