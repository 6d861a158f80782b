"""Run a server under mixed load, by default for a quarter of an hour, and report growth, errors and
leftovers.

    python -m benchmarks.soak --minutes 15
    python -m benchmarks.soak --minutes 2 -- --engine onnxruntime        # flags of the server follow --

Start a server and clients of every kind (soak_clients.py). Every answer is compared with the first answer to
the same image. After the first quarter (growth.py) memory and threads may not grow by more than GROWTH. At
the end the gauges of queue and decoding must be zero, files closed, the log without errors, and the server's
exit code 0. Otherwise the exit code is 1. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import threading
import time
import urllib.request
from typing import Any

from benchmarks import own_server
from benchmarks.growth import judge
from benchmarks.hostile.inference import Model
from benchmarks.own_server import Metrics, OwnServer
from benchmarks.soak_clients import CLIENTS, Soak, soaked_images

SAMPLE_S = 0.5
SETTLE_S = 60  # maximum time until files and gauges are back to their first values
# Threads may grow a little, because pools fill slowly.
GROWTH = {"memory_mib": 32.0, "threads": 6.0, "open_files": 4.0}

Sample = tuple[float, dict[str, float]]  # seconds since the start, and the values by GROWTH's names


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    key = secrets.token_hex(16)
    try:
        with own_server.own_server(args.flags, {"RESIDUUM_ADMIN_KEY": key}) as server:
            soak = new_soak(server.url, key)
            samples = [sample(soak, server, 0.0)]
            last: Metrics = {}
            try:
                run(soak, server, 60 * args.minutes, samples)
                last = look_after(soak, samples)
            except (OSError, ValueError, LookupError) as error:  # the server has probably ended
                soak.find(f"/metrics: {type(error).__name__}: {error}\n{server.end_of_log()}")
            if (code := server.stop()) != 0:
                soak.find(f"told to stop, the server ended with {code}:\n{server.end_of_log()}")
            for complaint in server.complaints()[:5]:
                soak.find(f"in the log: {complaint}")
    except (own_server.ServerFailed, OSError, ValueError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    found = report(soak, samples, last)
    for name, growth in found["growth"].items():
        print(f"{name}: {', '.join(f'{mark} {value:.1f}' for mark, value in growth.items())}")
    print(f"{soak.outcomes.total()} times asked in {found['seconds']:.0f} s, {len(soak.findings)} findings")
    print(json.dumps(found))
    return 1 if soak.findings else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=15.0, help="duration (default: %(default)g)")
    parser.add_argument("flags", nargs="*", help="after --: flags of the server that is started")
    return parser.parse_args(arguments)


def new_soak(url: str, key: str) -> Soak:
    with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
        name = json.load(answer)["models"][0]["name"]
    with urllib.request.urlopen(f"{url}/models/{name}", timeout=30) as answer:
        detail = json.load(answer)
    tolerance = max(graph["golden_tolerance"] for graph in detail["manifest"]["graphs"])
    return Soak(url, Model(name, detail["version"], detail["input_size"]), key, tolerance, soaked_images())


def run(soak: Soak, server: OwnServer, seconds: float, samples: list[Sample]) -> None:
    """Run all clients for `seconds`; add samples of the server meanwhile."""
    clients = [
        threading.Thread(target=soak.run, args=(name, number), daemon=True)
        for name, (_, _, count) in CLIENTS.items()
        for number in range(count)
    ]
    started = time.monotonic()
    for client in clients:
        client.start()
    try:
        while (elapsed := time.monotonic() - started) < seconds:
            samples.append(sample(soak, server, elapsed))
            soak.stop.wait(SAMPLE_S)
    finally:
        soak.stop.set()
        for client in clients:
            client.join()


def sample(soak: Soak, server: OwnServer, elapsed: float) -> Sample:
    metrics = own_server.read_metrics(soak.url, soak.timeout)
    return elapsed, {
        "memory_mib": own_server.resident_mib(metrics),
        "threads": server.threads(),
        "open_files": own_server.open_files(metrics),
    }


def look_after(soak: Soak, samples: list[Sample]) -> Metrics:
    """Check that the idle server has released files and queued work, and did not grow; return its metrics."""
    files = samples[0][1]["open_files"]
    deadline = time.monotonic() + SETTLE_S
    while True:
        metrics = own_server.read_metrics(soak.url, soak.timeout)
        left = own_server.still_at_work(metrics)
        more = own_server.open_files(metrics) - files
        if (not left and more <= 0) or time.monotonic() > deadline:
            break
        time.sleep(SAMPLE_S)
    for name, value in {**left, **own_server.troubles(metrics)}.items():
        soak.find(f"afterwards {name} is {value:g}")
    if more > GROWTH["open_files"]:
        soak.find(f"afterwards {more:g} more files are open than at the start")
    for name in ("memory_mib", "threads"):
        if (growth := growth_of(samples, name)["growth"]) > GROWTH[name]:
            soak.find(f"{name} grew by {growth:.1f} after the first quarter")
    return metrics


def growth_of(samples: list[Sample], name: str) -> dict[str, float]:
    """Return the growth of a value; `slope` is for 1000 seconds."""
    return judge([(elapsed, values[name]) for elapsed, values in samples])


def report(soak: Soak, samples: list[Sample], last: Metrics) -> dict[str, Any]:
    return {
        "model": soak.model.name,
        "seconds": round(samples[-1][0], 1),
        "outcomes": dict(sorted(soak.outcomes.items())),
        "findings": soak.findings,
        "growth": {
            name: {mark: round(value, 2) for mark, value in growth_of(samples, name).items()}
            for name in GROWTH
        },
        "open_files_after": own_server.open_files(last),
        "gauges_after": {
            name: own_server.total(last, name)
            for name in ("residuum_queue_entries", "residuum_decoding_images")
        },
        "batches": own_server.total(last, "residuum_inference_seconds_count"),
        "cancelled": own_server.total(last, "residuum_cancelled_total"),
        "refused": own_server.total(last, "residuum_refused_total"),
        "passed": not soak.findings,
    }


if __name__ == "__main__":
    sys.exit(main())
