"""Limit the requests a second of each key, or of each address where there are no keys.

A caller may send a burst of one second's requests, then requests at the steady rate: a token bucket, kept as
one number a caller (the generic cell rate algorithm of ATM, ITU-T I.371). A route whose policy is not
`limited` is not counted. Each worker process counts for itself.
"""

from __future__ import annotations

import ipaddress
import time
from math import ceil

from cachetools import LRUCache
from starlette.types import Scope

from engines.settings import SettingsError
from service.errors import RateLimited
from service.http.middleware.access import CALLER
from service.http.policy import policy_of
from service.settings import Settings

MAX_CALLERS = 10_000  # remembered at once; the caller that was silent longest is forgotten first
MIN_PER_SECOND, MAX_PER_SECOND = 1e-4, 1_000_000
SECOND_NS = 1_000_000_000  # whole nanoseconds, so that sums of them are exact


def rate_limit(settings: Settings) -> list[RateLimit]:
    """Return the check for the application's list; an empty list without a limit.

    Raises:
        SettingsError: the limit is out of any sensible range.
    """
    per_second = settings.rate_limit
    if not per_second:
        return []
    if not MIN_PER_SECOND <= per_second <= MAX_PER_SECOND:
        raise SettingsError(
            f"--rate-limit {per_second:g}: from {MIN_PER_SECOND:g} to {MAX_PER_SECOND:,} requests a second; "
            "0 for no limit"
        )
    return [RateLimit(per_second)]


class RateLimit:
    """The check that refuses, with 429 and Retry-After, a caller that is too fast."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._interval_ns = ceil(SECOND_NS / per_second)
        self._burst_ns = (max(1, int(per_second)) - 1) * self._interval_ns
        self._now_ns = time.monotonic_ns
        self._full_at_ns: LRUCache[bytes | str, int] = LRUCache(MAX_CALLERS)  # when the bucket is full again

    def __call__(self, scope: Scope) -> None:
        if not policy_of(scope).limited:
            return
        wait_s = self._take(scope[CALLER] or network_of(scope["client"]))
        if wait_s > 0:
            raise RateLimited(f"More than {self._per_second:g} requests a second came.", wait_s)

    def _take(self, caller: bytes | str) -> float:
        """Count a request if it may pass, and return 0; else return the seconds until one may."""
        now_ns = self._now_ns()
        full_at_ns = max(now_ns, self._full_at_ns.get(caller, now_ns))
        wait_ns = full_at_ns - now_ns - self._burst_ns
        if wait_ns > 0:
            return wait_ns / SECOND_NS
        self._full_at_ns[caller] = full_at_ns + self._interval_ns
        return 0.0


def network_of(client: tuple[str, int] | None) -> str:
    """Return what is counted as one caller: an IPv4 address, or the /64 of an IPv6 address.

    One host usually has a whole /64.
    """
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
