"""Compare the server's speed with that of other servers in one run: print the theory first, then the tables.

    python -m benchmarks.http --chart docs/images/http.png           # make bench-http; about 6 minutes
    python -m benchmarks.http --seconds 3 --rounds 1 --server residuum --server litserve-ort

All servers get the same artifact, the same photographs and the same cores. They are started one after
another, in another order each round; a ratio is the median of the ratios of the rounds. No process is pinned:
the load tool runs on the same cores, and takes the same share of them from every server. Our server reads
RESIDUUM_* from the environment; otherwise it runs with its defaults and without access log, as the others do.
The last line printed is JSON.
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
from urllib.request import urlopen

from artifact.store import EMBEDDED
from benchmarks.aims import print_aims
from benchmarks.http_chart import draw
from benchmarks.http_report import judge, print_ceiling, print_ours, print_servers
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
from benchmarks.load import Closed, LoadFailed, Target, closed_loop, open_loop
from benchmarks.theory import print_machine, this_machine

CEILING_S = 1.0  # for each measurement of the ceiling
RIGHT = 0.6  # minimum share of fp32's top five classes; int8 with random weights has about 0.9
STEADY = 0.7  # share of our peak: the load at which latency is measured
OVERLOADS = (1.0, 2.0, 3.0)  # multiples of our peak
RAMP_S = 2.0  # of an open loop; not counted
# Share of a client's time limit that it gives to the server; the rest is for the network.
SHARE_OF_LIMIT = 0.9


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
        "--model", choices=("resnet50", EMBEDDED), default="resnet50", help="(default: resnet50)"
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="folder of JPEG files (default: synthetic photographs)"
    )
    parser.add_argument(
        "--server", choices=names, action="append", help="measure this server; repeatable (default: all)"
    )
    parser.add_argument(
        "--rounds", type=int, default=2, help="times that every server is measured (default: 2)"
    )
    parser.add_argument(
        "--seconds", type=float, default=10, help="duration of each measurement (default: 10)"
    )
    parser.add_argument(
        "--warmup", type=float, default=3, help="seconds of load before each measurement (default: 3)"
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
    servers = [server for server in SERVERS if not args.server or server.name in args.server]
    if any(server.name != OURS for server in servers):
        make_peers_venv()
    served = subject(args.model)
    machine = this_machine("cpu")
    print_machine(machine)
    sizes = [path.stat().st_size for path in files]
    best = ceiling(served, files, min(CEILING_S, args.seconds))
    print_ceiling(best, served.manifest.name, len(files), statistics.mean(sizes))
    rows = {server.name: {"title": server.title, "rounds": []} for server in servers}
    right = right_answers(served, files)
    ceilings = []
    for number in range(args.rounds):
        ceilings.append(once_more(best, served, files, min(CEILING_S, args.seconds)).requests_per_s)
        for server in servers[number % len(servers) :] + servers[: number % len(servers)]:
            rows[server.name]["rounds"].append(measure_peak(server, served, files, right, args))
    summarise_rounds(rows, ceilings)
    print_servers(rows, args.connections)
    ours = None
    if OURS in rows:
        ours = measure_ours(served, files, rows[OURS]["requests_per_s"], args)
        print_ours(ours, rows[OURS])
    judged = judge(rows, ours, machine, args.model)
    print_aims(judged)
    settings = {
        name: getattr(args, name) for name in ("rounds", "seconds", "warmup", "connections", "limit_ms")
    }
    return {
        "model": served.manifest.name,
        "machine": machine.as_json(),
        "images": {"count": len(files), "mean_bytes": statistics.mean(sizes), "made_up": args.images is None},
        "settings": settings,
        "ceiling": best.as_json() | {"rounds": ceilings},
        "servers": rows,
        "ours": ours,
        "aims": judged,
    }


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
        with running(server, served, files) as target:
            # Without weights for torch, the tutorial serves a network with other random weights.
            checked = server.name != "tutorial" or served.weights is not None
            agrees = agreement(right, top_classes(target)) if checked else None
            if agrees is not None and agrees < RIGHT:
                raise ServerFailed(f"it answers wrongly: {agrees:.0%} of the top classes are right")
            closed = peak(target, args.connections, args.warmup, args.seconds)
    except ServerFailed as error:
        if server.name == OURS:
            raise
        print(error, file=sys.stderr, flush=True)
        return {"problem": str(error)}
    return {"agreement": agrees, **asdict(closed)}


def peak(target: Target, connections: int, warmup: float, seconds: float) -> Closed:
    """Warm the server up, wait until its queue is empty, and measure."""
    closed_loop(target, connections, warmup)
    top_classes(target._replace(bodies=target.bodies[:1]))
    return closed_loop(target, connections, seconds)


def summarise_rounds(rows: dict[str, dict[str, Any]], ceilings: Sequence[float]) -> None:
    """Add to each server the medians of its rounds, its share of the ceiling, and how much faster ours was.

    The last two are medians of ratios within a round.
    """
    ours = rows.get(OURS, {"rounds": []})["rounds"]
    for row in rows.values():
        done = [one for one in row["rounds"] if "problem" not in one]
        for name in ("requests_per_s", "p50_ms", "p99_ms"):
            row[name] = statistics.median(one[name] for one in done) if done else None
        ratios = [
            own["requests_per_s"] / other["requests_per_s"]
            for own, other in zip(ours, row["rounds"], strict=False)
            if other.get("requests_per_s")
        ]
        row["ours_is_times"] = statistics.median(ratios) if ratios else None
        shares = [
            one["requests_per_s"] / ceiling
            for one, ceiling in zip(row["rounds"], ceilings, strict=True)
            if "problem" not in one
        ]
        row["of_ceiling"] = statistics.median(shares) if shares else None


def measure_ours(
    served: Subject, files: Sequence[Path], most: float, args: argparse.Namespace
) -> dict[str, Any]:
    """Measure our server with one connection, under a steady load, and under overload."""
    ours = next(server for server in SERVERS if server.name == OURS)
    print(f"{ours.title}: latency and overload ...", file=sys.stderr, flush=True)
    ramp_s = max(RAMP_S, 2 * args.limit_ms / 1000)
    with running(ours, served, files) as target:
        with urlopen(target.url.replace("/classify", "/models"), timeout=60) as response:
            (model,) = json.load(response)["models"]
        alone = peak(target, 1, args.warmup, args.seconds)
        steady = open_loop(target, STEADY * most, args.seconds, RAMP_S, args.limit_ms)
        hurried = target._replace(url=f"{target.url}?timeout_ms={int(SHARE_OF_LIMIT * args.limit_ms)}")
        overloads = [
            asdict(open_loop(hurried, times * most, args.seconds, ramp_s, args.limit_ms)) | {"times": times}
            for times in OVERLOADS
        ]
    assert alone.decode_ms is not None
    assert alone.inference_ms is not None
    return {
        "engine": model["engine"],
        "precision": model["precision"],
        "alone": asdict(alone) | {"overhead_ms": alone.p50_ms - alone.decode_ms - alone.inference_ms},
        "steady": asdict(steady),
        "overloads": overloads,
    }


if __name__ == "__main__":
    sys.exit(main())
