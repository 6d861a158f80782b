"""Load on a server of this machine, and what came of it: closed loop by wrk, open loop by open_loop.py.

Closed: so many connections, each asking again as soon as it is answered; it finds the most that a server can
do. Open: a constant rate whatever the answers do; it finds what clients who do not know each other would see.
No open-loop tool that counts latency from when a request was due could be had from PyPI, npm or Debian: hey,
ab and locust pace closed loops, and autocannon corrects afterwards by guessing. So that client is our own.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from artifact.errors import ResiduumError

SCRIPT = Path(__file__).with_name("wrk.lua")
ROOT = SCRIPT.parent.parent
PATIENCE_S = 30  # for one answer


class LoadFailed(ResiduumError):
    """The load could not be put on, or its outcome not be read."""


class Target(NamedTuple):
    """Where a server takes images, and whole request bodies as files."""

    url: str
    content_type: str
    bodies: Sequence[Path]


@dataclass(frozen=True)
class Closed:
    """What a closed loop saw; `p99_ms` is of all answers, whatever their status."""

    requests_per_s: float  # answered with 200
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    unanswered: int
    decode_ms: float | None  # medians of what our own server says in its answers
    inference_ms: float | None


class Answer(NamedTuple):
    """Of one request of an open loop, in seconds from its start and from when it was due."""

    due_s: float
    latency_s: float  # to the answer, or to where there was none any more
    status: int  # 0: no answer
    sent_late_s: float = 0.0


@dataclass(frozen=True)
class Open:
    """What an open loop saw after its ramp."""

    rate: float
    goodput: float  # 200 within the limit, a second
    p50_ms: float | None  # of those answered with 200, late ones included; None where there are none
    p99_ms: float | None
    statuses: dict[str, int]
    late: int  # 200, but after the limit
    sent_late_ms: float | None  # p99; where this is much, it was the client that had no core to run on


def closed_loop(target: Target, connections: int, seconds: float) -> Closed:
    """Run wrk with one thread.

    Raises:
        LoadFailed: wrk is not installed, or failed.
    """
    if (wrk := shutil.which("wrk")) is None:
        raise LoadFailed("wrk is not installed: apt-get install wrk, brew install wrk")
    whole = max(1, round(seconds))  # it counts in whole seconds
    options = ["-t1", f"-c{connections}", f"-d{whole}s", f"--timeout={PATIENCE_S}s", "-s", str(SCRIPT)]
    return read_wrk(
        _output_of([wrk, *options, target.url, "--", target.content_type, *map(str, target.bodies)], whole)
    )


def read_wrk(output: str) -> Closed:
    """What wrk.lua printed in the end.

    Raises:
        LoadFailed: it did not.
    """
    line = next((line for line in output.splitlines() if line.startswith("JSON ")), None)
    if line is None:
        raise LoadFailed(f"wrk printed no result:\n{output}")
    found: dict[str, Any] = json.loads(line.removeprefix("JSON "))
    return Closed(
        requests_per_s=found["statuses"].get("200", 0) / found["seconds"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        statuses=found["statuses"],
        unanswered=found["unanswered"],
        decode_ms=_median(found["decode_ms"]),
        inference_ms=_median(found["inference_ms"]),
    )


def open_loop(target: Target, rate: float, seconds: float, ramp_s: float, limit_ms: float) -> Open:
    """Send at `rate` for `ramp_s + seconds`; what is due in the ramp, or answered in it, does not count.

    Raises:
        LoadFailed: the client failed.
    """
    numbers = [f"{rate}", f"{ramp_s + seconds}", f"{PATIENCE_S}"]
    command = [sys.executable, "-m", "benchmarks.open_loop", target.url, *numbers, target.content_type]
    output = _output_of([*command, *map(str, target.bodies)], ramp_s + seconds)
    answers = [Answer(*row) for row in json.loads(output)]
    return summarise(answers, rate, seconds, ramp_s, limit_ms)


def summarise(answers: Sequence[Answer], rate: float, seconds: float, ramp_s: float, limit_ms: float) -> Open:
    """Latencies and statuses of what was due between ramp and end; goodput of what was answered then.

    An answer that comes after the end counts for no goodput: a queue that was filled meanwhile is no speed.
    """
    end = ramp_s + seconds
    due = [answer for answer in answers if ramp_s <= answer.due_s < end]
    latencies = sorted(1000 * answer.latency_s for answer in due if answer.status == 200)
    good = sum(
        answer.status == 200
        and 1000 * answer.latency_s <= limit_ms
        and ramp_s <= answer.due_s + answer.latency_s < end
        for answer in answers
    )
    return Open(
        rate=rate,
        goodput=good / seconds,
        p50_ms=percentile(latencies, 50),
        p99_ms=percentile(latencies, 99),
        statuses={str(status): count for status, count in sorted(Counter(a.status for a in due).items())},
        late=sum(latency > limit_ms for latency in latencies),
        sent_late_ms=percentile(sorted(1000 * answer.sent_late_s for answer in due), 99),
    )


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """The smallest value that at least `percent` of them do not exceed."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _output_of(command: Sequence[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + 3 * PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[0]} did not end") from error
    if done.returncode:
        raise LoadFailed(f"{' '.join(command[:4])} ... ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
