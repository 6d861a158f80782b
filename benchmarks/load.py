"""Load on a server of this machine: a closed loop by wrk, or an open loop by open_loop.py.

Closed loop: each connection sends its next request after an answer. It measures the maximum throughput. Open
loop: requests are sent at a constant rate, whatever the answers do. It measures what independent clients
experience. No tool in PyPI, npm or Debian counts an open loop's latency from when a request was due: hey, ab,
h2load, bombardier and locust are closed loops or pace them, and autocannon corrects by an estimate
afterwards. So open_loop.py is our own. Both tools run on the cores of the server that they measure, and tell
their processor time.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from artifact.errors import ResiduumError

SCRIPT = Path(__file__).with_name("wrk.lua")
ROOT = SCRIPT.parent.parent
PATIENCE_S = 30  # maximum time of an answer


class LoadFailed(ResiduumError):
    """The load tool is missing or failed, or its output cannot be read."""


class Target(NamedTuple):
    """The URL that takes images, and whole request bodies as files."""

    url: str
    content_type: str
    bodies: Sequence[Path]


@dataclass(frozen=True)
class Closed:
    """Results of a closed loop; `p99_ms` counts all answers, whatever their status."""

    requests_per_s: float  # answered with 200
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    unanswered: int
    decode_ms: float | None  # medians of the timings in our own server's answers
    inference_ms: float | None
    client_ms: float | None = None  # the load tool's own processor time a request
    server_ms: float | None = None  # the server's, an answer with 200, if it was measured


class Answer(NamedTuple):
    """One request of an open loop: when it was due, and its latency counted from then."""

    due_s: float
    latency_s: float  # until the answer, or until the request was given up
    status: int  # 0: no answer
    sent_late_s: float = 0.0


@dataclass(frozen=True)
class Open:
    """Results of an open loop after its ramp."""

    rate: float
    goodput: float  # answers a second with status 200 within the limit
    p50_ms: float | None  # of all answers with status 200, late ones included; None without any
    p99_ms: float | None
    statuses: dict[str, int]
    late: int  # status 200, but after the limit
    sent_late_ms: float | None  # p99; a large value means that the client itself lacked a core
    client_ms: float | None = None  # the client's own processor time a request


def closed_loop(target: Target, connections: int, seconds: float, *, patient: bool = False) -> Closed:
    """Run wrk with one thread.

    Args:
        patient: whether a connection whose request is refused waits as long as Retry-After says.

    Raises:
        LoadFailed: wrk is not installed, or failed.
    """
    if (wrk := shutil.which("wrk")) is None:
        raise LoadFailed("wrk is not installed: apt-get install wrk, brew install wrk")
    whole = max(1, round(seconds))  # wrk takes whole seconds
    options = ["-t1", f"-c{connections}", f"-d{whole}s", f"--timeout={PATIENCE_S}s", "-s", str(SCRIPT)]
    command = [wrk, *options, target.url, "--", target.content_type, *map(str, target.bodies)]
    before_s = _cpu_s_of_children()
    found = read_wrk(_output_of(command, whole, {"PATIENT": "1"} if patient else {}))
    num_answers = sum(found.statuses.values())
    client_ms = 1000 * (_cpu_s_of_children() - before_s) / num_answers if num_answers else None
    return replace(found, client_ms=client_ms)


def _cpu_s_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read_wrk(output: str) -> Closed:
    """Return the results that wrk.lua printed at the end.

    Raises:
        LoadFailed: it printed none.
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
    """Send at `rate` for `ramp_s + seconds`; requests due in the ramp do not count.

    Raises:
        LoadFailed: the client failed.
    """
    numbers = [f"{rate}", f"{ramp_s + seconds}", f"{PATIENCE_S}"]
    command = [sys.executable, "-m", "benchmarks.open_loop", target.url, *numbers, target.content_type]
    output = _output_of([*command, *map(str, target.bodies)], ramp_s + seconds)
    document = json.loads(output)
    answers = [Answer(*row) for row in document["answers"]]
    client_ms = 1000 * document["cpu_s"] / len(answers) if answers else None
    return replace(summarise(answers, rate, seconds, ramp_s, limit_ms), client_ms=client_ms)


def summarise(answers: Sequence[Answer], rate: float, seconds: float, ramp_s: float, limit_ms: float) -> Open:
    """Return latencies and statuses of requests due after the ramp, and the goodput.

    Goodput counts answers that arrive between ramp and end. Later answers do not count, because they came
    from a queue that filled meanwhile.
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
    """Return the smallest value that is not less than `percent` per cent of the values; None without any."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _output_of(command: Sequence[str], seconds: float, environment: Mapping[str, str] = {}) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=seconds + 3 * PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"{command[0]} did not end") from error
    if done.returncode:
        raise LoadFailed(f"{' '.join(command[:4])} ... ended with {done.returncode}:\n{done.stderr}")
    return done.stdout
