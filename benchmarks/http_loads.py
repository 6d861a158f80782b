"""Loads on our own server alone: one connection, a steady rate, overload, a crowd, and introspect."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from benchmarks.http_servers import OURS, SERVERS, Running, running, top_classes
from benchmarks.http_subject import Subject
from benchmarks.load import Closed, Target, closed_loop, open_loop

STEADY = 0.7  # share of our peak: the load at which latency is measured
OVERLOADS = (1.0, 2.0, 3.0)  # multiples of our peak
CROWD = 300  # connections of a closed loop that no server can keep busy
RAMP_S = 2.0  # of an open loop; not counted
# Share of a client's time limit that it gives to the server; the rest is for the network.
SHARE_OF_LIMIT = 0.9


def peak(server: Running, connections: int, warmup: float, seconds: float) -> Closed:
    """Warm the server up, wait until its queue is empty, and measure."""
    closed_loop(server.target, connections, warmup)
    top_classes(server.target._replace(bodies=server.target.bodies[:1]))
    before_s = server.cpu_s()
    closed = closed_loop(server.target, connections, seconds)
    num_answers = closed.statuses.get("200", 0)
    return replace(
        closed, server_ms=1000 * (server.cpu_s() - before_s) / num_answers if num_answers else None
    )


def measure_ours(
    served: Subject,
    files: Sequence[Path],
    most: float,
    *,
    warmup: float,
    seconds: float,
    limit_ms: float,
    overloads: Sequence[float] = OVERLOADS,
) -> dict[str, Any]:
    """Measure our server; `most` is the peak that it reached in the closed loop, in requests a second.

    Raises:
        LoadFailed, ServerFailed: see load.py and http_servers.py.
    """
    ours = next(server for server in SERVERS if server.name == OURS)
    print(f"{ours.title}: latency and overload ...", file=sys.stderr, flush=True)
    ramp_s = max(RAMP_S, 2 * limit_ms / 1000)
    with running(ours, served, files) as server:
        target = server.target
        hurried = target._replace(url=f"{target.url}?timeout_ms={int(SHARE_OF_LIMIT * limit_ms)}")
        introspecting = target._replace(url=target.url.replace("/classify", "/introspect?maps=u8"))
        with urlopen(target.url.replace("/classify", "/models"), timeout=60) as response:
            (model,) = json.load(response)["models"]
        alone = _with_overhead(peak(server, 1, warmup, seconds))
        introspect = _with_overhead(_warmed(introspecting, 1, warmup, seconds))
        steady = open_loop(target, STEADY * most, seconds, RAMP_S, limit_ms)
        loads = [
            asdict(open_loop(hurried, times * most, seconds, ramp_s, limit_ms)) | {"times": times}
            for times in overloads
        ]
        crowds = {
            "retry at once": _warmed(target, CROWD, warmup, seconds),
            "retry at once, with a limit": _warmed(hurried, CROWD, warmup, seconds),
            "heed Retry-After": _warmed(target, CROWD, warmup, seconds, patient=True),
            "heed Retry-After, with a limit": _warmed(hurried, CROWD, warmup, seconds, patient=True),
        }
    return {
        "engine": model["engine"],
        "precision": model["precision"],
        "alone": alone,
        "introspect": introspect,
        "steady": asdict(steady),
        "overloads": loads,
        "crowds": {name: asdict(crowd) for name, crowd in crowds.items()},
    }


def _warmed(
    target: Target, connections: int, warmup: float, seconds: float, *, patient: bool = False
) -> Closed:
    closed_loop(target, connections, warmup, patient=patient)
    return closed_loop(target, connections, seconds, patient=patient)


def _with_overhead(closed: Closed) -> dict[str, Any]:
    """Return the results of one connection, and the milliseconds beside decode and inference."""
    assert closed.decode_ms is not None
    assert closed.inference_ms is not None
    return asdict(closed) | {"overhead_ms": closed.p50_ms - closed.decode_ms - closed.inference_ms}
