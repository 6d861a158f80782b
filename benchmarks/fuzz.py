"""Send hostile requests to a server over several connections, and report every wrong reaction.

    python -m benchmarks.fuzz --count 100000                         # to a server that it starts
    python -m benchmarks.fuzz --kind images -- --engine onnxruntime  # with these flags
    python -m benchmarks.fuzz --url http://127.0.0.1:8000 --minutes 60 --count 100000000
    python -m benchmarks.fuzz --kind images --seed 0 --first 1234 --count 1     # repeat case 1234

Case i depends on --kind, --seed and i only. These are findings:

- a 5xx other than 503, a lost connection, an answer later than --timeout or in an undocumented form
- a wrong answer to one of the valid images that are sent in between
- memory that grows after the first quarter, files that stay open, gauges that do not return to zero,
  a failed batch
- if the server was started here: an error in its log, or an exit code other than 0

The exit code is 1 if there is a finding; its request is saved with its seed. The last line printed is JSON.
This module knows HTTP and the server's contract, not the server's code.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import own_server
from benchmarks.growth import judge
from benchmarks.hostile.client import Client, Finding, Witness
from benchmarks.hostile.forms import corpus, image_request
from benchmarks.hostile.inference import Model, inference_request
from benchmarks.hostile.request import HostileRequest

MAX_FINDINGS = 20  # the run ends after this many
SOUND_EVERY = 50  # a valid image is sent after this many cases, and its answer compared
SAMPLE_S = 0.5
SETTLE_S = 30  # maximum time until files and gauges are back to their first values
# Pictures of 49 megapixels leave holes in the heap, which come and go. A leak of 1 kB a request is
# 49 MiB in 100,000.
GROWTH_MIB = 40.0
GROWTH_FILES = 4


@dataclass
class Run:
    """The parameters of a run, and the results of all its workers."""

    url: str
    model: Model
    witness: Witness
    kind: str
    seed: int
    timeout: float
    folder: Path  # where findings are saved
    end: float  # of time.monotonic()
    before: own_server.Metrics
    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest_ms: float = 0.0
    slowest_case: int = -1
    memory: list[tuple[int, float]] = field(default_factory=list)  # cases done, MiB
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, finding: str) -> None:
        with self.lock:
            self.findings.append(finding)
        print(finding, flush=True)

    def request(self, number: int) -> tuple[HostileRequest, random.Random]:
        chance = random.Random(f"{self.kind}/{self.seed}/{number}")
        images = self.kind == "images" or (self.kind == "both" and chance.random() < 0.6)
        return image_request(chance) if images else inference_request(chance, self.model), chance


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    try:
        with target(args) as (run, cases):
            started = time.perf_counter()
            fuzz(run, cases, args.workers)
            seconds = time.perf_counter() - started
    except (own_server.ServerFailed, Finding, OSError, ValueError, LookupError) as error:
        print(f"fuzz: {error}", file=sys.stderr)
        return 2
    found = report(run, seconds)
    print(f"{found['count']} requests in {seconds:.0f} s, {len(run.findings)} findings")
    print(json.dumps(found))
    return 1 if run.findings else 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("images", "inference", "both"), default="both")
    parser.add_argument("--count", type=int, default=20_000, help="how many cases (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--url", help="a running server (default: start one, and check how it ends)")
    parser.add_argument("--workers", type=int, default=8, help="number of connections (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=20.0, help="seconds an answer may take (default: %(default)s)"
    )
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz-failures"), help="folder for the requests that failed"
    )
    parser.add_argument("flags", nargs="*", help="after --: flags of the server that is started")
    return parser.parse_args(arguments)


@contextmanager
def target(args: argparse.Namespace) -> Iterator[tuple[Run, range]]:
    """Yield the run against a server, and the numbers of its cases.

    Raises:
        ServerFailed, Finding, OSError, ValueError, LookupError: no server answers, or not as ours does.
    """
    cases = range(args.first, args.first + args.count)
    if args.url:
        yield new_run(args.url.rstrip("/"), args), cases
        return
    with own_server.own_server(args.flags) as server:
        run = new_run(server.url, args)
        yield run, cases
        ended = server.process.poll()
        code = server.stop() if ended is None else ended
        if ended is not None or code != 0:
            run.find(f"the server ended with {code}:\n{server.end_of_log()}")
        if complaints := server.complaints():
            run.find(f"{len(complaints)} complaints in the log, such as: {complaints[0]}")


def new_run(url: str, args: argparse.Namespace) -> Run:
    with urllib.request.urlopen(f"{url}/models", timeout=30) as answer:
        name = json.load(answer)["models"][0]["name"]
    with urllib.request.urlopen(f"{url}/models/{name}", timeout=30) as answer:
        detail = json.load(answer)
    tolerance = max(graph["golden_tolerance"] for graph in detail["manifest"]["graphs"])
    with closing(Client(url, args.timeout)) as client:
        witness = Witness(client, corpus()[:8], tolerance)
    model = Model(name, detail["version"], detail["input_size"])
    end = time.monotonic() + 60 * args.minutes
    before = own_server.read_metrics(url)
    return Run(url, model, witness, args.kind, args.seed, args.timeout, args.findings, end, before)


def fuzz(run: Run, cases: range, num_workers: int) -> None:
    """Send all cases; sample the server's metrics meanwhile, and check them afterwards."""
    workers = [
        threading.Thread(target=work, args=(run, cases[i::num_workers]), daemon=True)
        for i in range(num_workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(SAMPLE_S)
            sample(run)
    look_after(run)


def work(run: Run, cases: range) -> None:
    """Send the cases of one worker."""
    with closing(Client(run.url, run.timeout)) as client:
        for number in cases:
            if len(run.findings) >= MAX_FINDINGS or time.monotonic() > run.end:
                return
            request, chance = run.request(number)
            started, finding = time.perf_counter(), ""
            try:
                outcome = client.send(request, chance)
                if number % SOUND_EVERY == 0:
                    run.witness.ask(client, chance)
            except Exception as error:  # a Finding, or a bug of the fuzzer
                outcome, finding = "finding", f"{type(error).__name__}: {error}"
            elapsed_ms = (time.perf_counter() - started) * 1000
            if not finding and elapsed_ms > run.timeout * 1000:
                finding = f"took {elapsed_ms / 1000:.1f} s"
            with run.lock:
                run.outcomes[outcome] += 1
                run.kinds[request.what] += 1
                if elapsed_ms > run.slowest_ms:
                    run.slowest_ms, run.slowest_case = elapsed_ms, number
            if finding:
                saved = save(request, run, number)
                run.find(f"seed {run.seed} case {number} ({request.what}): {finding}; saved as {saved}")


def save(request: HostileRequest, run: Run, number: int) -> Path:
    """Write the request's body, and a JSON file with its path, headers and delivery."""
    run.folder.mkdir(parents=True, exist_ok=True)
    path = run.folder / f"{run.kind}-seed{run.seed}-case{number}.bin"
    path.write_bytes(request.body)
    about = {"path": request.path, "headers": request.headers, "delivery": request.delivery}
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")
    return path


# --- the server's metrics ----------------------------------------------------------------------------


def sample(run: Run) -> own_server.Metrics:
    """Read the server's metrics and note its memory; a failure is a finding."""
    try:
        metrics = own_server.read_metrics(run.url, run.timeout)
    except (OSError, ValueError) as error:
        run.find(f"/metrics: {type(error).__name__}: {error}")
        return {}
    with run.lock:
        run.memory.append((run.outcomes.total(), own_server.resident_mib(metrics)))
    return metrics


def look_after(run: Run) -> None:
    """Check that the idle server has released files, memory and queued work."""
    deadline = time.monotonic() + SETTLE_S
    while metrics := sample(run):
        more = own_server.open_files(metrics) - own_server.open_files(run.before)
        busy = own_server.still_at_work(metrics)
        if not (busy or more > 0) or time.monotonic() > deadline:
            for name, value in {**busy, **own_server.troubles(metrics)}.items():
                run.find(f"afterwards {name} is {value:g}")
            if more > GROWTH_FILES:
                run.find(f"afterwards {more:g} more files are open than before")
            break
        time.sleep(SAMPLE_S)
    if run.memory and (growth := judge(run.memory)["growth"]) > GROWTH_MIB:
        run.find(f"memory grew by {growth:.0f} MiB after the first quarter")


def report(run: Run, seconds: float) -> dict[str, Any]:
    done = run.outcomes.total()
    return {
        "url": run.url,
        "kind": run.kind,
        "seed": run.seed,
        "count": done,
        "outcomes": dict(sorted(run.outcomes.items())),
        "kinds": dict(sorted(run.kinds.items())),
        "findings": run.findings,
        "slowest_ms": round(run.slowest_ms, 1),
        "slowest_case": run.slowest_case,
        "requests_per_second": round(done / seconds, 1),
        "memory_mib": {name: round(value, 2) for name, value in judge(run.memory).items()}
        if run.memory
        else None,
    }


if __name__ == "__main__":
    sys.exit(main())
