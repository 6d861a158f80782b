"""The artifact, photographs and right answers of benchmarks/http.py, and the ceiling of this machine."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
from PIL import Image

from artifact.manifest import Manifest, read_manifest
from artifact.postprocess import top_classes
from artifact.preprocess import preprocess
from artifact.store import EMBEDDED, find_artifact
from benchmarks.subjects import random_artifact
from engines.engine import EngineError, EngineName, EngineOptions
from engines.machine import num_cores
from engines.registry import BASELINE, ENGINES, open_engine

NUM_PHOTOGRAPHS = 16
WIDTH, HEIGHT, QUALITY = 500, 375, 93
BATCHES = (1, 4, 8)
SEED = 0


@dataclass(frozen=True)
class Subject:
    """An artifact with an int8 graph, and the same weights as a file for torch, if there is one.

    Args:
        full: a copy that decodes at full size; None if the artifact itself does.
        workers: the processes of our server: as many as cores where inference is cheap.
    """

    directory: Path
    manifest: Manifest
    weights: Path | None
    full: Path | None = None
    workers: int = 1


def subject(name: str, folder: Path | None = None) -> Subject:
    """Return the embedded model, or `resnet50` with random weights, which takes minutes to make.

    Args:
        folder: where to make the copy that decodes at full size; without one none is made.
    """
    if name == EMBEDDED:
        directory = find_artifact(EMBEDDED, Path())
        manifest = read_manifest(directory)
        full = folder and full_decoding(directory, folder) if manifest.preprocessing.scaled_decoding else None
        return Subject(directory, manifest, None, full, workers=num_cores())
    directory = random_artifact(name, ("int8",), seed=SEED)
    weights = directory.with_name(f"{directory.name}.pt")
    if not weights.is_file():
        import torch

        from export.random_weights import random_model

        torch.save(random_model(name, SEED)[0].state_dict(), weights)
    return Subject(directory, read_manifest(directory), weights)


def full_decoding(directory: Path, folder: Path) -> Path:
    """Return a copy of an artifact in `folder` that decodes every photograph at full size."""
    copy = Path(shutil.copytree(directory, folder / f"{directory.name}-full"))
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["preprocessing"]["scaled_decoding"] = False
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return copy


# --- photographs ------------------------------------------------------------------------------------


def photographs(directory: Path | None, folder: Path) -> list[Path]:
    """Return up to NUM_PHOTOGRAPHS JPEG files of `directory`; without one, write synthetic ones to `folder`.

    Raises:
        FileNotFoundError: there is none in `directory`.
    """
    if directory is not None:
        found = sorted(path for path in directory.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        if not found:
            raise FileNotFoundError(f"--images {directory}: there is no .jpg or .jpeg file")
        return found[:NUM_PHOTOGRAPHS]
    paths = [folder / f"{seed:02}.jpg" for seed in range(NUM_PHOTOGRAPHS)]
    for seed, path in enumerate(paths):
        made_up_photograph(seed).save(path, quality=QUALITY)
    return paths


def made_up_photograph(seed: int) -> Image.Image:
    """Return noise of every scale with a spectrum like a photograph's; as JPEG it has 50 to 100 kB."""
    rng = np.random.default_rng(seed)
    levels = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for side in (4, 8, 16, 32, 64, 128, WIDTH):
        grey = rng.normal(size=(side * HEIGHT // WIDTH or 1, side, 1))
        noise = (grey + 0.5 * rng.normal(size=(*grey.shape[:2], 3))).astype(np.float32)
        strength = 50 / math.sqrt(side / 4)
        for channel in range(3):
            plane = Image.fromarray(noise[:, :, channel]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            levels[:, :, channel] += strength * np.asarray(plane)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


# --- right answers ----------------------------------------------------------------------------------


def right_answers(subject: Subject, files: Sequence[Path], top_k: int = 5) -> list[set[int]]:
    """Return the top classes of each photograph, by ONNX Runtime in fp32."""
    graph = subject.manifest.graph("classify", "fp32")
    assert graph is not None, "every artifact has one"
    images = [preprocess(path.read_bytes(), subject.manifest.preprocessing).pixels for path in files]
    with closing(open_engine(BASELINE, subject.directory / graph.file, "fp32")) as engine:
        return [set(top_classes(engine.run({"images": image[None]})["logits"][0], top_k)) for image in images]


def agreement(right: Sequence[set[int]], answers: Sequence[set[int]]) -> float:
    """Return the mean share of the right top classes that a server answered."""
    return sum(len(a & b) / len(a) for a, b in zip(right, answers, strict=True)) / len(right)


# --- the ceiling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ceiling:
    """The most requests a second that these cores could answer if only decoding and inference took time."""

    cores: int
    decode_ms: float  # for one image on one core
    decodes_per_s: float  # on all cores
    inference_ms: float  # for one image on all cores
    inferences_per_s: float
    engine: EngineName
    instances: int
    batch: int
    tried: tuple[dict[str, Any], ...]

    @property
    def requests_per_s(self) -> float:
        return 1 / (1 / self.decodes_per_s + 1 / self.inferences_per_s)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"requests_per_s": self.requests_per_s}


def ceiling(subject: Subject, files: Sequence[Path], seconds: float) -> Ceiling:
    """Time decoding alone, then inference alone in every way; each for about `seconds`."""
    cores = num_cores()
    one = decode_rate(subject, files, 1, seconds)
    tried = [
        {"engine": engine, "instances": instances, "batch": batch, "images_per_s": rate}
        for engine in [row.name for row in ENGINES.values() if "int8" in row.cpu]
        for instances in sorted({1, cores})
        for batch, rate in inference_rates(subject, engine, instances, BATCHES, seconds).items()
    ]
    best = max(tried, key=lambda row: row["images_per_s"])
    return Ceiling(
        cores=cores,
        decode_ms=1000 / one,
        decodes_per_s=max(one, decode_rate(subject, files, cores, seconds)),
        inference_ms=1000 / best["images_per_s"],
        inferences_per_s=best["images_per_s"],
        engine=best["engine"],
        instances=best["instances"],
        batch=best["batch"],
        tried=tuple(tried),
    )


def once_more(best: Ceiling, subject: Subject, files: Sequence[Path], seconds: float) -> Ceiling:
    """Time the fastest way again, because the speed of a shared machine changes within minutes."""
    rates = inference_rates(subject, best.engine, best.instances, (best.batch,), seconds)
    decodes_per_s = decode_rate(subject, files, best.cores, seconds)
    return replace(best, decodes_per_s=decodes_per_s, inferences_per_s=rates[best.batch])


def decode_rate(subject: Subject, files: Sequence[Path], threads: int, seconds: float) -> float:
    """Return how many image files a second are decoded and preprocessed."""
    bodies, spec = cycle([path.read_bytes() for path in files]), subject.manifest.preprocessing
    return rate_of(lambda: preprocess(next(bodies), spec), threads, seconds)


def inference_rates(
    subject: Subject, name: EngineName, instances: int, batches: Sequence[int], seconds: float
) -> dict[int, float]:
    """Return images a second by batch size, with all instances busy; empty if the engine is not available."""
    graph, crop = subject.manifest.graph("classify", "int8"), subject.manifest.preprocessing.crop
    assert graph is not None, "the subject has an int8 graph"
    options = EngineOptions("cpu", batch_sizes=tuple(batches), instances=instances)
    try:
        engine = open_engine(name, subject.directory / graph.file, "int8", options)
    except EngineError:
        return {}
    images = np.random.default_rng(SEED).integers(0, 256, (max(batches), crop, crop, 3), np.uint8)
    with closing(engine):
        return {
            batch: batch * rate_of(partial(engine.run, {"images": images[:batch]}), instances, seconds)
            for batch in batches
        }


def rate_of(work: Callable[[], object], threads: int, seconds: float) -> float:
    """Return the calls a second of `threads` threads; the first call of each thread is not counted."""

    together = Barrier(threads)

    def count(_: int) -> tuple[int, float]:
        work()
        together.wait()
        calls, started = 0, time.perf_counter()
        while not calls or time.perf_counter() - started < seconds:
            work()
            calls += 1
        return calls, time.perf_counter() - started

    with ThreadPoolExecutor(threads) as pool:
        return sum(calls / elapsed for calls, elapsed in pool.map(count, range(threads)))
