"""Compare the server's speed with that of other servers in one run: print the theory first, then the tables.

    python -m benchmarks.http --chart docs/images/http.png           # make bench-http; about 12 minutes
    python -m benchmarks.http --model embedded --seconds 3 --rounds 1 --server residuum --server litserve-ort

All servers get the same artifact, the same photographs and the same cores. They are started one after
another, in another order each round; a ratio is the median of the ratios of the rounds. No process is pinned:
the load tool runs on the same cores, and takes the same share of them from every server. Our server reads
RESIDUUM_* from the environment; otherwise it runs with its defaults, without access log, as the others do;
where inference is cheap in as many processes as there are cores, as FastAPI does.
Then come loads on our server alone, and its budget of processor time by stage, in a run of its own. The last
line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifact.store import EMBEDDED
from benchmarks.aims import print_aims
from benchmarks.http_budget import measure_budget, print_budget
from benchmarks.http_chart import draw
from benchmarks.http_loads import OVERLOADS, measure_ours, peak
from benchmarks.http_report import judge, print_ceiling, print_ours, print_servers, ratio_of
from benchmarks.http_servers import OURS, SERVERS, Server, ServerFailed, make_peers_venv, running, top_classes
from benchmarks.http_subject import (
    Subject,
    agreement,
    ceiling,
    once_more,
    photographs,
    right_answers,
    subject,
)
from benchmarks.load import LoadFailed
from benchmarks.theory import Machine, print_machine, this_machine

MODELS = (EMBEDDED, "resnet50")
CEILING_S = 1.0  # for each measurement of the ceiling
RIGHT = 0.6  # minimum share of fp32's top five classes; int8 with random weights has about 0.9


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = photographs(args.images, Path(folder))
            # Let the server choose its engine in this run: the machine may have been busy at an earlier one.
            os.environ.setdefault("RESIDUUM_ENGINE_CACHE", str(Path(folder) / "engines"))
            document = bench_http(args, files)
    except (LoadFailed, ServerFailed, FileNotFoundError) as error:
        print(f"benchmarks.http: {error}", file=sys.stderr)
        return 2
    if args.chart:
        draw(document, args.chart)
    print(json.dumps(document))
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [server.name for server in SERVERS]
    parser.add_argument(
        "--model", choices=MODELS, action="append", help="measure this model; repeatable (default: both)"
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="folder of JPEG files (default: synthetic photographs)"
    )
    parser.add_argument(
        "--server",
        choices=names,
        action="append",
        help="measure this server; repeatable (default: all; the tutorial only with resnet50)",
    )
    parser.add_argument(
        "--overload",
        type=float,
        action="append",
        metavar="TIMES",
        help=f"offer this many times the peak; repeatable (default: {', '.join(map(str, OVERLOADS))})",
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="times that every server is measured (default: 2)"
    )
    parser.add_argument("--seconds", type=float, default=5, help="duration of each measurement (default: 5)")
    parser.add_argument(
        "--warmup", type=float, default=2, help="seconds of load before each measurement (default: 2)"
    )
    parser.add_argument(
        "--connections", type=int, default=16, help="connections of the closed loop (default: 16)"
    )
    parser.add_argument(
        "--limit-ms",
        type=float,
        default=1000,
        help="time limit of an answer that counts as goodput (default: 1000)",
    )
    parser.add_argument("--chart", type=Path, metavar="PNG", help="write a chart")
    args = parser.parse_args(arguments)
    if min(args.rounds, args.connections) < 1 or min(args.seconds, args.warmup) < 1 or args.limit_ms <= 0:
        parser.error("--rounds, --connections, --seconds and --warmup must be 1 or more, --limit-ms above 0")
    return args


def bench_http(args: argparse.Namespace, files: Sequence[Path]) -> dict[str, Any]:
    """Print and return all measurements.

    Raises:
        LoadFailed: the load tool is missing or failed.
        ServerFailed: our own server failed, or the packages of the others cannot be installed.
    """
    if not args.server or set(args.server) != {OURS}:
        make_peers_venv()
    machine = this_machine("cpu")
    print_machine(machine)
    names = ("rounds", "seconds", "warmup", "connections", "limit_ms")
    return {
        "machine": machine.as_json(),
        "images": {
            "count": len(files),
            "mean_bytes": statistics.mean(path.stat().st_size for path in files),
            "made_up": args.images is None,
        },
        "settings": {name: getattr(args, name) for name in names},
        "models": {name: bench_model(name, args, files, machine) for name in args.model or MODELS},
    }


def bench_model(
    name: str, args: argparse.Namespace, files: Sequence[Path], machine: Machine
) -> dict[str, Any]:
    """Print and return what was measured of one model."""
    with tempfile.TemporaryDirectory() as folder:
        return _bench_served(name, subject(name, Path(folder)), args, files, machine)


def _bench_served(
    name: str, served: Subject, args: argparse.Namespace, files: Sequence[Path], machine: Machine
) -> dict[str, Any]:
    servers = [server for server in SERVERS if _is_measured(server, served, args.server)]
    best = ceiling(served, files, min(CEILING_S, args.seconds))
    print_ceiling(best, served.manifest.name, files)
    rows = {server.name: {"title": server.title, "rounds": []} for server in servers}
    right = right_answers(served, files)
    ceilings = []
    for number in range(args.rounds):
        ceilings.append(once_more(best, served, files, min(CEILING_S, args.seconds)).requests_per_s)
        for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
            rows[server.name]["rounds"].append(measure_peak(server, served, files, right, args))
    summarise_rounds(rows, ceilings)
    print_servers(rows, args.connections)
    ours = budget = None
    if OURS in rows:
        ours = measure_ours(
            served,
            files,
            rows[OURS]["requests_per_s"],
            warmup=args.warmup,
            seconds=args.seconds,
            limit_ms=args.limit_ms,
            overloads=args.overload or OVERLOADS,
        )
        print_ours(ours, rows[OURS])
        budget = measure_budget(served, files, args.connections, args.warmup, args.seconds)
        print_budget(budget)
    judged = judge(rows, ours, budget, machine, name)
    print_aims(judged)
    return {
        "model": served.manifest.name,
        "ceiling": best.as_json() | {"rounds": ceilings},
        "servers": rows,
        "ours": ours,
        "budget": budget,
        "aims": judged,
    }


def _is_measured(server: Server, served: Subject, asked: Sequence[str] | None) -> bool:
    if (server.full and served.full is None) or (server.one and served.workers == 1):
        return False
    if asked:
        return server.name in asked
    return server.name != "tutorial" or served.weights is not None


def measure_peak(
    server: Server,
    served: Subject,
    files: Sequence[Path],
    right: Sequence[set[int]],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Start a server, check its answers, and measure it; return a `problem` if it fails and is not ours."""
    print(f"{server.title} ...", file=sys.stderr, flush=True)
    try:
        with running(server, served, files) as started:
            # Without weights for torch, the tutorial serves a network with other random weights.
            checked = server.name != "tutorial" or served.weights is not None
            agrees = agreement(right, top_classes(started.target)) if checked else None
            if agrees is not None and agrees < RIGHT:
                raise ServerFailed(f"it answers wrongly: {agrees:.0%} of the top classes are right")
            closed = peak(started, args.connections, args.warmup, args.seconds)
    except ServerFailed as error:
        if server.name == OURS:
            raise
        print(error, file=sys.stderr, flush=True)
        return {"problem": str(error)}
    return {"agreement": agrees, **asdict(closed)}


def summarise_rounds(rows: dict[str, dict[str, Any]], ceilings: Sequence[float]) -> None:
    """Add to each server the medians of its rounds, its share of the ceiling, and how much faster ours was.

    The last two are medians of ratios within a round.
    """
    ours = rows.get(OURS, {"rounds": []})["rounds"]
    for row in rows.values():
        done = [one for one in row["rounds"] if "problem" not in one]
        for name in ("requests_per_s", "p50_ms", "p99_ms", "server_ms", "client_ms"):
            row[name] = statistics.median(one[name] for one in done) if done else None
        row["ours_is_times"] = ratio_of(ours, row["rounds"])
        shares = [
            one["requests_per_s"] / ceiling
            for one, ceiling in zip(row["rounds"], ceilings, strict=True)
            if "problem" not in one
        ]
        row["of_ceiling"] = statistics.median(shares) if shares else None


if __name__ == "__main__":
    sys.exit(main())
