"""The budget: processor time a request by stage, from the threads' own clocks while our server is busy."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.budget_clock import COLLECTION
from benchmarks.budget_server import BATCH, DECODE, ENGINE, RESIZE, STAGES
from benchmarks.http_servers import BUDGET, running
from benchmarks.http_subject import Subject
from benchmarks.load import closed_loop, open_loop

LOOP, NATIVE, OTHER = "event loop: sockets, timers", "engine: its own threads", "other threads"
CLOCKS = "the clocks themselves"
ANSWERS_ONLY = (DECODE, RESIZE, BATCH, ENGINE, NATIVE)  # a request that is refused does not pass these
OVERLOAD = 3.0  # times the peak
OVERLOAD_TIMEOUT_MS = 900
LEAST_MS = 0.0005  # what is less is left out of the table


def measure_budget(
    served: Subject, files: Sequence[Path], connections: int, warmup: float, seconds: float
) -> dict[str, Any]:
    """Run a closed loop and an overload on our server with clocks in it.

    Return milliseconds of processor time a request, by stage, and of a refusal.

    Raises:
        LoadFailed, ServerFailed: see load.py and http_servers.py.
    """
    print(f"{BUDGET.title} ...", file=sys.stderr, flush=True)
    with running(BUDGET, served, files) as server:
        closed_loop(server.target, connections, warmup)
        before = server.snapshot()
        closed = closed_loop(server.target, connections, seconds)
        between = server.snapshot()
        hurried = server.target._replace(url=f"{server.target.url}?timeout_ms={OVERLOAD_TIMEOUT_MS}")
        offered = open_loop(hurried, OVERLOAD * closed.requests_per_s, seconds, 0.0, OVERLOAD_TIMEOUT_MS)
        after = server.snapshot()
    budget = budget_of(before, between, closed.statuses.get("200", 0))
    num_refused = sum(count for status, count in offered.statuses.items() if status != "200")
    return budget | {
        "refused": num_refused,
        "refusal_ms": refusal_ms(
            budget, budget_of(between, after, 1), offered.statuses.get("200", 0), num_refused
        ),
    }


def budget_of(before: Mapping[str, Any], after: Mapping[str, Any], num_requests: int) -> dict[str, Any]:
    """Return the milliseconds a request of every stage, of what no stage claims, and of the whole process."""
    rows = dict.fromkeys([*STAGES, COLLECTION, LOOP, NATIVE, OTHER], 0.0)
    earlier = {thread["id"]: thread for thread in before["threads"]}
    for thread in after["threads"]:
        then = earlier.get(thread["id"], {"cpu_ms": 0.0, "stages_ms": {}})
        left_ms = thread["cpu_ms"] - then["cpu_ms"]
        for stage, spent_ms in thread["stages_ms"].items():
            used_ms = spent_ms - then["stages_ms"].get(stage, 0.0)
            rows[stage] += used_ms
            left_ms -= used_ms
        rows[_unclaimed_of(thread)] += left_ms
    num_calls = sum(after["calls"].values()) - sum(before["calls"].values())
    each = max(1, num_requests)
    stages_ms = {stage: spent_ms / each for stage, spent_ms in rows.items()}
    total_ms = (after["process_ms"] - before["process_ms"]) / each
    clocks_ms = num_calls * after["cost_ms"] / each
    idle = [place for place, calls in after["calls"].items() if calls == before["calls"][place]]
    return {
        "stages_ms": stages_ms,
        "total_ms": total_ms,
        "clocks_ms": clocks_ms,
        "beside_ms": total_ms
        - clocks_ms
        - sum(stages_ms[stage] for stage in (DECODE, RESIZE, ENGINE, NATIVE)),
        "ended_ms": total_ms - sum(stages_ms.values()),
        "calls_a_request": num_calls / each,
        "never_called": [place for place in idle if "._work" not in place],
        "requests": num_requests,
    }


def refusal_ms(
    budget: Mapping[str, Any], overload: Mapping[str, Any], num_answered: int, num_refused: int
) -> float | None:
    """Return the processor time of a refusal, without the clocks; None if nothing was refused.

    It is what the stages that refusals pass took under overload, beyond what answers take of them.

    Args:
        budget: of requests that were answered.
        overload: of the whole overload, as one request.
    """
    if not num_refused:
        return None
    passed_ms = _passed_by_refusals(overload) - num_answered * _passed_by_refusals(budget)
    return passed_ms / num_refused


def _passed_by_refusals(budget: Mapping[str, Any]) -> float:
    not_passed = sum(spent_ms for stage, spent_ms in budget["stages_ms"].items() if stage in ANSWERS_ONLY)
    return float(budget["total_ms"] - budget["clocks_ms"] - not_passed)


def _unclaimed_of(thread: Mapping[str, Any]) -> str:
    """Return the row of what no stage claims on a thread; Python's threads have names, an engine's do not."""
    if thread["name"] == "MainThread":
        return LOOP
    return NATIVE if thread["name"] is None else OTHER


def print_budget(budget: Mapping[str, Any]) -> None:
    """Print the table; every number is milliseconds of processor time a request."""
    print(f"\n{'processor time a request, with clocks':<38}{'ms':>8}{'share':>8}")
    rows = {**budget["stages_ms"], "threads that ended meanwhile": budget["ended_ms"]}
    for stage, spent_ms in rows.items():
        if abs(spent_ms) >= LEAST_MS:
            print(f"{stage:<38}{spent_ms:>8.3f}{spent_ms / budget['total_ms']:>8.1%}")
    print(
        f"{'all':<38}{budget['total_ms']:>8.3f}{1:>8.1%}\n"
        f"of which {CLOCKS}, about {budget['clocks_ms']:.3f} ms ({budget['calls_a_request']:.0f} calls); "
        f"beside decode, resize and engine {budget['beside_ms']:.3f} ms, the clocks left out"
    )
    if budget["refusal_ms"] is not None:
        print(
            f"a refusal takes {budget['refusal_ms']:.3f} ms ({budget['refused']} of them "
            f"at {OVERLOAD:g} times the peak)"
        )
    if budget["never_called"]:
        print(f"never called in this run, so perhaps renamed: {', '.join(budget['never_called'])}")
