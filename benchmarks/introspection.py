"""Measure what introspection of one image costs, and compare with other libraries in the same run.

    python -m benchmarks.introspection                      # make bench-introspection; some minutes
    python -m benchmarks.introspection --model embedded --seconds 0.5 --no-peers

There are three kinds of rows: our graphs on an engine; our server over HTTP; and captum, pytorch-grad-cam and
TorchLens on torch, in a process and a venv of their own (`peers/introspection.py`), with the same number of
threads. All use the same architecture and one image; the other libraries' network has random weights. All
rows are timed in turn for several rounds, so that other work on the machine affects all rows alike. The
shortest time of a round counts, because other work can only add to it; on a busy machine it slows torch's
threads most. A ratio is the median of the ratios of the rounds. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from artifact.manifest import TOP_CLASS, Manifest, read_manifest
from artifact.store import EMBEDDED, find_artifact
from benchmarks.http_subject import photographs
from benchmarks.introspection_peers import peers
from benchmarks.own_server import ServerFailed, own_server
from benchmarks.peers.introspection import time_slice
from benchmarks.peers_venv import PeersFailed
from benchmarks.subjects import FRESH_SEED, random_artifact
from benchmarks.theory import cost_of, print_machine, this_machine
from engines.engine import EngineError, EngineOptions
from engines.machine import num_cores
from engines.registry import BASELINE, ENGINES, open_engine
from export.verify import synthetic_images

FORMS = (
    ("classify", "/classify"),
    ("introspect, rms alone", "/introspect?quantities=rms&maps=none"),
    ("introspect, all but lesions", "/introspect"),
    ("introspect, all", "/introspect?lesion=true"),
)

Timer = Callable[[float], list[float]]  # seconds -> milliseconds of each call


@dataclass
class Row:
    """A way to introspect; `against` is the title of the row with which it is compared."""

    title: str
    against: str
    timer: Timer
    rounds_ms: list[float] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    machine = this_machine("cpu")
    print_machine(machine)
    documents = []
    for name in args.model or [EMBEDDED, "resnet50"]:
        directory = (
            random_artifact(name, ()) if name == "resnet50" else find_artifact(name, Path("artifacts"))
        )
        try:
            documents.append(bench_model(directory, args))
        except (EngineError, ServerFailed) as error:
            print(f"benchmarks.introspection: {error}", file=sys.stderr)
            return 2
    settings = {"rounds": args.rounds, "seconds": args.seconds, "threads": num_cores()}
    print(json.dumps({"machine": machine.as_json(), "settings": settings, "models": documents}))
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", action="append", help="name or path; repeatable (default: embedded and resnet50, random)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that every row is measured (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=1, help="duration of each row in a round (default: 1)"
    )
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds must be 1 or more, --seconds above 0")
    return args


def bench_model(directory: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Print the theory, then measure and print the rows; return the figures.

    Raises:
        EngineError, ServerFailed: our own engine or server does not start.
    """
    manifest = read_manifest(directory)
    print_theory(directory, manifest)
    with ExitStack() as stack:
        rows, left_out = engine_rows(directory, manifest, stack)
        rows += http_rows(directory, manifest, stack)
        if not args.no_peers:
            try:
                others = stack.enter_context(peers(manifest))
            except PeersFailed as error:
                left_out.append(f"the peers: {error}")
            else:
                rows += [Row(title, others.titles[0], partial(others.time, title)) for title in others.titles]
                left_out += others.missing
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds} ...", file=sys.stderr, flush=True)
            for row in list(rows):
                try:
                    row.rounds_ms.append(min(row.timer(args.seconds)))
                except PeersFailed as error:
                    rows.remove(row)
                    left_out.append(f"{row.title}: {error}")
    facts = [summarise(row, rows) for row in rows]
    print_rows(facts)
    for reason in left_out:
        print(f"left out: {reason}")
    return {"model": manifest.name, "version": manifest.version, "rows": facts, "left_out": left_out}


def print_theory(directory: Path, manifest: Manifest) -> None:
    """Print the multiply-accumulates of each method, counted from the graph's shapes."""
    graphs = {
        graph.kind: cost_of(directory / graph.file) for graph in manifest.graphs if graph.precision == "fp32"
    }
    forward, num_blocks = graphs["classify"].macs / 1e6, len(manifest.blocks)
    pixels = manifest.preprocessing.crop
    print(f"\n{manifest.name}: {num_blocks} blocks, an image of {pixels} pixels; in M multiply-accumulates")
    print(f"theory: forward {forward:.0f}", end="")
    if "attribute" in graphs:
        print(f", with contributions {graphs['attribute'].macs / 1e6:.0f}", end="")
    print(
        f", forward and back about {2 * forward:.0f}; a pass a block {num_blocks * forward:.0f}, "
        f"there and back {2 * num_blocks * forward:.0f}"
    )


# --- ours: engines -----------------------------------------------------------------------------------------


def engine_rows(directory: Path, manifest: Manifest, stack: ExitStack) -> tuple[list[Row], list[str]]:
    """Return rows for each fp32 graph with one image, and for all lesions as one batch; and what is missing.

    `stack` closes the engines.
    """
    rows: list[Row] = []
    left_out: list[str] = []
    num_blocks = len(manifest.blocks)
    image = synthetic_images(1, manifest.preprocessing.crop, FRESH_SEED)
    gates = np.ones((num_blocks + 1, num_blocks), np.float32)
    gates[1:][np.diag_indices(num_blocks)] = 0
    batch = {"images": np.repeat(image, num_blocks + 1, 0), "gates": gates}
    alone = {"images": image, "gates": gates[:1], "target": np.full(1, TOP_CLASS, np.int64)}
    options = EngineOptions("cpu", batch_sizes=(1, num_blocks + 1))
    for engine_name in [row.name for row in ENGINES.values() if "fp32" in row.cpu and not row.slow_import]:
        for kind in ("classify", "introspect", "attribute"):
            graph = manifest.graph(kind, "fp32")
            if graph is None:
                left_out.append(f"{kind} on {engine_name}: the artifact has no such graph")
                continue
            try:
                engine = stack.enter_context(
                    closing(open_engine(engine_name, directory / graph.file, "fp32", options))
                )
            except EngineError as error:
                left_out.append(f"{kind} on {engine_name}: {error}")
                continue
            inputs = {tensor.name: alone[tensor.name] for tensor in graph.inputs}
            runs = [(kind, inputs)]
            if kind == "introspect":
                runs.append((f"all lesions, {num_blocks + 1} rows", batch))
            for title, fed in runs:
                work = partial(engine.run, fed)
                rows.append(
                    Row(f"{engine_name}: {title}", f"{engine_name}: classify", partial(time_slice, work))
                )
    return rows, left_out


# --- ours: HTTP --------------------------------------------------------------------------------------------


def http_rows(directory: Path, manifest: Manifest, stack: ExitStack) -> list[Row]:
    """Return rows that post a photograph to our own server over one keep-alive connection."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    body = photographs(None, folder)[0].read_bytes()
    flags = ["--artifacts", str(directory.parent), "--model", str(directory), "--precision", "fp32"]
    server = stack.enter_context(own_server(flags, {"RESIDUUM_ENGINE_CACHE": str(folder / "engines")}))
    address = urlsplit(server.url)
    assert address.hostname is not None
    connection = stack.enter_context(closing(http.client.HTTPConnection(address.hostname, address.port, 300)))

    def ask(path: str) -> None:
        connection.request("POST", path, body, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ServerFailed(f"{path} answers {answer.status}: {content[:300]!r}")

    return [
        Row(f"HTTP: {title}", "HTTP: classify", partial(time_slice, partial(ask, path)))
        for title, path in FORMS
    ]


# --- the report --------------------------------------------------------------------------------------------


def summarise(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the row's figures: `x_own` relative to `against`, `x_ours` to our attribute graph."""

    def ratio(title: str) -> float | None:
        unit = next((other for other in rows if other.title == title), None)
        if unit is None:
            return None
        return statistics.median(a / b for a, b in zip(row.rounds_ms, unit.rounds_ms, strict=True))

    return {
        "row": row.title,
        "ms": min(row.rounds_ms),
        "rounds_ms": row.rounds_ms,
        "against": row.against,
        "x_own": ratio(row.against),
        "x_ours": ratio(f"{BASELINE}: attribute"),
    }


def print_rows(facts: Sequence[dict[str, Any]]) -> None:
    """Print the rows; the unit is classify for engines and HTTP, the forward pass for other libraries."""
    print(f"{'one image':<72}{'ms':>9}{'x own unit':>12}{'x attribute':>13}")
    for fact in facts:
        cells = (
            f"{'-':>12}" if fact[name] is None else f"{fact[name]:>12.2f}" for name in ("x_own", "x_ours")
        )
        print(f"{fact['row']:<72}{fact['ms']:>9.2f}{' '.join(cells)}")


if __name__ == "__main__":
    sys.exit(main())
