"""Everything that is to be measured on a machine with a GPU, in one command of at most eight minutes.

    python -m benchmarks.gpu [--wheels FOLDER] [--out FILE]        # make bench-gpu
    python -m benchmarks.gpu --device cpu --quick                  # every step on a CPU, with a small model

`STEPS` lists the steps, the most important first. Each is a function of another module that returns a
document for JSON. It runs in a process of its own, within a time limit. A step that fails, hangs or loses the
GPU leaves an `error` and what it had found so far, and the next one runs. Steps for which no time is left are
`skipped`. ResNet-50 with random weights is exported in another process meanwhile.

Packages that are missing come as wheels (gpu_wheels.py). Only the standard library is imported here, because
this runs before they are installed. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_wheels import WheelsError, install

ROOT = Path(__file__).resolve().parent.parent
BUDGET_S = 450.0
LEAST_S = 10.0  # a step is not begun with less time left


@dataclass(frozen=True)
class Step:
    """The function `name` of `module`, which has `limit_s` seconds.

    Attributes:
        needs_subject: it measures the artifact that the first of the steps makes.
    """

    name: str
    module: str
    limit_s: float
    needs_subject: bool = True


STEPS = (
    Step("subject", "benchmarks.gpu_subject", BUDGET_S, needs_subject=False),  # exports what others measure
    Step("environment", "benchmarks.gpu_steps", 60, needs_subject=False),
    Step("engines", "benchmarks.gpu_steps", 90, needs_subject=False),
    Step("trained", "benchmarks.gpu_trained", 100, needs_subject=False),
    Step("resnet50", "benchmarks.gpu_steps", 120),
    Step("introspect", "benchmarks.gpu_steps", 60),
    Step("http", "benchmarks.gpu_http", 150),
    Step("int8", "benchmarks.gpu_int8", 100),
    Step("compiled", "benchmarks.gpu_steps", 150),
)


@dataclass(frozen=True)
class Context:
    """What a step is told.

    Attributes:
        quick: a small model, small batches, short measurements.
        folder: for files; the steps share it, and read one another's documents in it.
    """

    device: str
    quick: bool
    folder: Path

    def keep(self, name: str, document: dict[str, Any]) -> None:
        """Write what a step has found so far, which remains if it is stopped."""
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(document), encoding="utf-8")
        partial.replace(self.folder / f"{name}.json")

    def found(self, name: str) -> dict[str, Any]:
        """Return what another step found; {} if nothing."""
        try:
            document: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if args.step:
        return run_step(*args.step.split(":"), Context(args.device, args.quick, args.folder))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-gpu.") as folder:
        environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}
        if args.quick:
            environment["OMP_NUM_THREADS"] = "1"  # small networks run faster on one thread than on many
        environment.setdefault("RESIDUUM_ENGINE_CACHE", str(Path(folder) / "engines"))
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        if args.wheels:
            try:
                install(args.wheels, Path(folder) / "site")
            except WheelsError as error:
                print(f"benchmarks.gpu: {error}", file=sys.stderr)
                return 2
            paths.insert(0, str(Path(folder) / "site"))
        libraries = [*_cuda_libraries(), os.environ.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        scale = max(1.0, args.seconds / BUDGET_S)
        steps = [replace(step, limit_s=scale * step.limit_s) for step in STEPS]
        document = run_steps(
            steps, Context(args.device, args.quick, Path(folder)), environment, started + args.seconds
        )
    document = {"seconds": round(time.monotonic() - started, 1)} | document
    text = json.dumps(document)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if document["failures"] else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    parser.add_argument("--quick", action="store_true", help="a small model and short measurements")
    parser.add_argument(
        "--seconds",
        type=float,
        default=BUDGET_S,
        help="time for everything (default: %(default)g); with more, each step has more too",
    )
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="install these wheels first")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON here too")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # how the process of a step is started
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _cuda_libraries() -> list[str]:
    """Return the folders of the CUDA libraries that torch's packages bring.

    ONNX Runtime looks for them beside itself only, and with --wheels it is installed elsewhere.
    """
    places = [Path(place) for place in sys.path if place]
    return [str(folder) for place in places for folder in sorted(place.glob("nvidia/*/lib"))]


def run_steps(
    steps: Sequence[Step], context: Context, environment: dict[str, str], deadline: float
) -> dict[str, Any]:
    """Run every step in a process; return the documents by step, the failures, and what was skipped.

    Args:
        steps: the first one runs beside those after it that do not need it.
        deadline: on the clock of `time.monotonic`.
    """
    subject, *others = steps
    documents: dict[str, Any] = {}
    making = _start(subject, context, environment)
    try:
        for step in others:
            if step.needs_subject and subject.name not in documents:
                documents[subject.name] = _finish(making, subject, context, deadline)
            if step.needs_subject and "error" in documents[subject.name]:
                documents[step.name] = {"skipped": f"{subject.name}: there is none"}
            elif deadline - time.monotonic() < LEAST_S:
                documents[step.name] = {"skipped": "no time was left"}
            else:
                process = _start(step, context, environment)
                documents[step.name] = _finish(process, step, context, deadline)
    finally:
        _stop(making)
    names = [step.name for step in steps]
    return {
        "device": context.device,
        "quick": context.quick,
        "failures": [
            f"{name}: {problem}" for name in names for problem in _problems(documents.get(name, {}))
        ],
        "unavailable": sorted({reason for name in names for reason in _unavailable(documents.get(name, {}))}),
        "skipped": [name for name in names if "skipped" in documents.get(name, {})],
        **documents,
    }


def _problems(document: dict[str, Any]) -> list[str]:
    error = [document["error"].splitlines()[-1]] if document.get("error") else []
    return [*error, *document.get("failures", [])]


def _unavailable(document: dict[str, Any]) -> list[str]:
    rows = [row for row in document.get("rows", []) if isinstance(row, dict) and "unavailable" in row]
    return [f"{row['way']}: {row['unavailable']}" for row in rows]


def _start(step: Step, context: Context, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--step", f"{step.module}:{step.name}"]
    command += ["--device", context.device, "--folder", str(context.folder)]
    command += ["--quick"] if context.quick else []
    print(f"{step.name} ...", file=sys.stderr, flush=True)
    # Its output is for people: the last line of ours is the JSON.
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr, start_new_session=True)


def _finish(
    process: subprocess.Popen[bytes], step: Step, context: Context, deadline: float
) -> dict[str, Any]:
    """Wait for a step's process within its limit; return its document, with `error` if it failed."""
    started = time.monotonic()
    error, limit_s = None, max(0.0, min(step.limit_s, deadline - started))
    try:
        code = process.wait(limit_s)
        if code < 0:
            error = f"ended by {signal.Signals(-code).name}"
        elif code:
            error = f"ended with {code}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {limit_s:.0f} s"
    _stop(process)
    document = context.found(step.name)
    if error:
        document = {"error": error} | document
    document["wall_s"] = round(time.monotonic() - started, 1)
    return document


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the process of a step, and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_step(module: str, name: str, context: Context) -> int:
    """Run the function `name` of `module` here, and write its document, with `error` if it raises."""
    try:
        document = getattr(importlib.import_module(module), name)(context)
        context.keep(name, document)
    except Exception:
        text = traceback.format_exc()
        print(text, file=sys.stderr)
        context.keep(name, context.found(name) | {"error": text[-3000:].strip()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
