"""Check that memory does not grow with the variety of batch sizes: random groups through a model's batchers.

    python -m benchmarks.soak_batches --minutes 1
    python -m benchmarks.soak_batches --engine openvino --runs 2000 --max-batch-size 32

Groups of random size go to classify and introspect. Every answer is compared with the first answer to the
same image. After the first quarter of the run (growth.py), when all caches are filled, the process may grow
by GROWTH_MIB; otherwise the exit code is 1. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.store import find_artifact
from benchmarks.growth import judge
from engines.settings import SettingsError
from service.batching.batcher import Batcher
from service.runtime.loading import load_model
from service.runtime.model import LoadedModel
from service.runtime.opening import LoadError
from service.settings import load_settings

# More than the usual variation (0.1 in a quiet minute), and less than the buffers of one more batch size: for
# eight images, 98 MiB in the first stage of ResNet-50 at 224 pixels, 24 in the whole embedded model.
GROWTH_MIB = 4.0
NUM_SAMPLES = 200
NUM_IMAGES = 16
SETTINGS = ("engine", "device", "precision", "threads", "max_batch_size", "artifacts")


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    flags = {name: getattr(args, name) for name in SETTINGS}
    try:
        settings = load_settings(**flags)
        model = load_model(find_artifact(args.model, settings.artifacts), settings)
    except (SettingsError, LoadError) as error:
        print(f"soak_batches: {error}", file=sys.stderr)
        return 2
    with closing(model):
        runs_on = f"{model.engine.name} {model.engine.version}, {model.engine.mode}"
        print(f"{model.name}: {model.precision} on {runs_on}")
        samples, done = soak(model, settings.max_batch_size, args.runs, 60 * args.minutes)
    found = judge(samples)
    print(
        f"{done['groups']} groups of 1 to {settings.max_batch_size} images in {done['seconds']:.0f} s, "
        f"{done['images']} images, {done['wrong']} wrong answers"
    )
    marks = ", ".join(f"{name} {found[name]:.1f}" for name in ("start", "quarter", "half", "end"))
    print(f"resident memory, MiB: {marks}; {found['slope']:+.2f} each 1000 groups after the first quarter")
    passed = found["growth"] <= GROWTH_MIB and not done["wrong"]
    print(
        f"grew by {found['growth']:.1f} MiB after the first quarter, {GROWTH_MIB:g} are allowed: "
        f"{'passed' if passed else 'FAILED'}"
    )
    engine = {"engine": model.engine.name, "mode": model.engine.mode, "precision": model.precision}
    limits = {"limit": GROWTH_MIB, "passed": passed}
    print(json.dumps({"model": model.name, **engine, **done, "memory_mib": found, **limits}))
    return 0 if passed else 1


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", default="embedded", help="a name under --artifacts, or a path (default: embedded)"
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="maximum duration (default: 1)")
    parser.add_argument("--runs", type=int, default=1_000_000, help="maximum number of groups")
    for name in SETTINGS:
        kind: Callable[[str], Any] = int if name in ("threads", "max_batch_size") else str
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="see residuum serve --help")
    return parser.parse_args(arguments)


def soak(
    model: LoadedModel, max_batch_size: int, runs: int, seconds: float
) -> tuple[list[tuple[int, float]], dict[str, Any]]:
    """Return about NUM_SAMPLES samples of (groups done, resident MiB), and counts of the work done."""
    rng = np.random.default_rng(0)
    crop = model.manifest.preprocessing.crop
    gates = np.ones(len(model.manifest.blocks), np.float32)
    rows = [{"images": image} for image in coarse_images(rng, crop)]
    asked = [(model.classify, rows)]
    if model.introspect is not None:
        asked.append((model.introspect, [{**row, "gates": gates} for row in rows]))
    tolerance = max(graph.golden_tolerance for graph in model.manifest.graphs)
    expected = [[ask(batcher, [row])[0] for row in own] for batcher, own in asked]
    images = wrong = groups = 0
    samples = [(0, resident_mib())]
    started = time.monotonic()
    while groups < runs and time.monotonic() - started < seconds:
        which = int(rng.integers(len(asked)))
        batcher, own = asked[which]
        picked = rng.integers(NUM_IMAGES, size=int(rng.integers(1, max_batch_size + 1)))
        for index, logits in zip(picked, ask(batcher, [own[index] for index in picked]), strict=True):
            wrong += not np.abs(logits - expected[which][index]).max() <= tolerance
        groups, images = groups + 1, images + len(picked)
        part = max(groups / runs, (time.monotonic() - started) / seconds)
        if part * NUM_SAMPLES >= len(samples):
            samples.append((groups, resident_mib()))
    samples.append((groups, resident_mib()))
    return samples, {
        "groups": groups,
        "images": images,
        "wrong": wrong,
        "seconds": time.monotonic() - started,
    }


def coarse_images(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Return NUM_IMAGES images of 8 x 8 coloured squares; they need no torch, as a server does not."""
    colours = rng.integers(0, 256, (NUM_IMAGES, 8, 8, 3), np.uint8)
    side = -(-size // 8)
    return np.ascontiguousarray(colours.repeat(side, 1).repeat(side, 2)[:, :size, :size])


def ask(batcher: Batcher, rows: list[dict[str, Any]]) -> list[Any]:
    """Return the logits of each row; the batcher forms the batches."""
    return [future.result().outputs["logits"] for future in batcher.submit(rows)]


def resident_mib() -> float:
    """Return this process's resident memory (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
