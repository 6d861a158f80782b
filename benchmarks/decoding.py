"""Measure what it costs to make a model's input of a photograph, and what scaled decoding changes.

    python -m benchmarks.decoding                            # photographs that it makes up
    python -m benchmarks.decoding --images FOLDER
    python -m benchmarks.decoding --data data/tiny-imagenet-200 --model embedded

Times are processor time of one thread, the smallest of several rounds in which all ways take turns: Pillow,
ours, ours with scaled decoding. "python" is what a photograph of 8x8 pixels takes, most of which holds the
interpreter's lock. With --data, validation images are scaled up, with and without grain, saved as JPEG, and
classified with and without scaled decoding. The last line printed is JSON. This module knows no server.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from artifact import jpeg
from artifact.image_bytes import Limits
from artifact.manifest import Preprocessing, read_manifest
from artifact.preprocess import preprocess, scaled_min_side
from artifact.store import EMBEDDED, find_artifact
from benchmarks.http_subject import made_up_photograph
from engines.engine import Engine
from engines.machine import num_cores
from engines.registry import BASELINE, open_engine

SIZES = {
    "500x375": (500, 375),
    "600x400": (600, 400),
    "3 megapixels": (2048, 1536),
    "12 megapixels": (4032, 3024),
}
QUALITY = 90
ROUNDS = 7
SCALED = {"scaled_decoding": True}
GRAINS = (0, 15)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUTS = {
    "64": Preprocessing(resize=64, crop=64, mean=MEAN, std=STD),
    "256/224": Preprocessing(resize=256, crop=224, mean=MEAN, std=STD),
}


@dataclass(frozen=True)
class Row:
    """One photograph, one input, and the milliseconds of each way."""

    photograph: str
    kilobytes: int
    input: str
    ms: dict[str, float]


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    if args.data:
        changes = measure_changes(args.data, args.model, args.sides, args.limit)
        print(f"{'side':>6}{'grain':>7}{'scale':>7}{'top-1':>9}{'scaled':>9}{'same':>9}{'max |d logit|':>15}")
        for one in changes:
            print(
                f"{one.side:>6}{one.grain:>7}{f'1/{one.scale}':>7}{one.top1:>9.2%}{one.top1_scaled:>9.2%}"
                f"{one.agreement:>9.2%}{one.mean_max_delta_logit:>15.3f}",
            )
        print(json.dumps([asdict(one) for one in changes]))
        return 0
    files = read_files(args.images) if args.images else made_up_files()
    print(f"simplejpeg {version()}, Pillow's libjpeg-turbo {features.version('libjpeg_turbo')}")
    rows = [row(name, data, which, args.seconds) for name, data in files.items() for which in INPUTS]
    print(f"{'photograph':16}{'kB':>6}{'input':>10}" + "".join(f"{way:>14}" for way in rows[0].ms))
    for one in rows:
        times = "".join(f"{ms:>11.2f} ms" for ms in one.ms.values())
        print(f"{one.photograph[:15]:16}{one.kilobytes:>6}{one.input:>10}{times}")
    print(json.dumps([asdict(one) for one in rows]))
    return 0


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of JPEG files (default: made-up photographs)")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="time of a way in a round (default: %(default)s)"
    )
    parser.add_argument("--data", help="a data set with labels: measure what scaled decoding changes")
    parser.add_argument("--model", default=EMBEDDED, help="the artifact to measure (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=2000, help="validation images (default: %(default)s)")
    parser.add_argument(
        "--sides",
        type=int,
        nargs="+",
        default=[352, 375, 768, 1536],
        help="shorter sides (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def version() -> str:
    return "is not installed" if jpeg.simplejpeg is None else str(jpeg.simplejpeg.__version__)


def made_up_files() -> dict[str, bytes]:
    """Return photographs of every size, and a grey and a progressive one, as JPEG."""
    photograph = made_up_photograph(0)
    files = {name: encode(photograph.resize(size, Image.Resampling.BICUBIC)) for name, size in SIZES.items()}
    files["500x375 grey"] = encode(photograph.convert("L"))
    files["500x375 progr."] = encode(photograph, progressive=True)
    return files


def read_files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    return {path.name: path.read_bytes() for path in found}


def encode(image: Image.Image, progressive: bool = False) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, progressive=progressive)
    return buffer.getvalue()


def row(name: str, data: bytes, which: str, seconds: float) -> Row:
    """Time every way to make the input of one photograph."""
    spec, limits = INPUTS[which], Limits()
    scaled, small = (spec.model_copy(update=change) for change in (SCALED, {"resize": 8, "crop": 8}))
    tiny = encode(made_up_photograph(0).resize((8, 8)))

    def with_pillow() -> object:
        with without_simplejpeg():
            return preprocess(data, spec, limits)

    ways: dict[str, Callable[[], object]] = {
        "Pillow": with_pillow,
        "ours": lambda: preprocess(data, spec, limits),
        "scaled": lambda: preprocess(data, scaled, limits),
        "python": lambda: preprocess(tiny, small, limits),
    }
    return Row(name, len(data) // 1000, which, times(ways, seconds))


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    """Let Pillow decode meanwhile."""
    kept, jpeg.simplejpeg = jpeg.simplejpeg, None
    try:
        yield
    finally:
        jpeg.simplejpeg = kept


def times(ways: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Return the milliseconds of processor time of each way."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, work in ways.items():
            work()
            calls, started = 0, time.thread_time()
            while not calls or time.thread_time() - started < seconds:
                work()
                calls += 1
            best[name] = min(best[name], (time.thread_time() - started) / calls * 1000)
    return best


# --- what scaled decoding changes --------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Answers with and without scaled decoding, to validation images of `side` x `side` pixels."""

    side: int
    grain: int  # standard deviation of the noise, in levels of 255
    scale: int  # decoded at 1/scale
    num_images: int
    top1: float
    top1_scaled: float
    agreement: float  # fraction of images with the same top class
    mean_max_delta_logit: float


def measure_changes(data: str, model: str, sides: Sequence[int], limit: int) -> list[Change]:
    """Classify validation images, scaled up and saved as JPEG, by the artifact's fp32 graph."""
    from models.training.data import load_images

    directory = find_artifact(model, Path("artifacts"))
    manifest = read_manifest(directory)
    full = manifest.preprocessing.model_copy(update={"scaled_decoding": False})
    images = load_images(data, "valid", full.model_copy(update={"resize": full.crop}), limit, spread=True)
    graph = manifest.graph("classify", "fp32")
    assert graph is not None, "every artifact has one"
    with closing(open_engine(BASELINE, directory / graph.file, "fp32")) as engine:
        return [
            measure_change(engine, full, images.images.numpy(), images.labels.numpy(), side, grain)
            for side in sides
            for grain in GRAINS
        ]


def measure_change(
    engine: Engine,
    full: Preprocessing,
    images_NHW3: NDArray[np.uint8],
    labels_N: NDArray[np.int64],
    side: int,
    grain: int,
) -> Change:
    """Compare the answers to images of one size."""
    scaled = full.model_copy(update=SCALED)

    def both(index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        large = Image.fromarray(images_NHW3[index]).resize((side, side), Image.Resampling.BICUBIC)
        if grain:
            noise = np.random.default_rng(index).normal(0, grain, (side, side, 1))
            large = Image.fromarray((np.asarray(large) + noise).clip(0, 255).astype(np.uint8))
        file = encode(large)
        return preprocess(file, full).pixels, preprocess(file, scaled).pixels

    logits_2NK: tuple[list[NDArray[np.float32]], ...] = ([], [])
    with ThreadPoolExecutor(num_cores()) as pool:
        for pair in pool.map(both, range(len(images_NHW3))):
            for logits, pixels in zip(logits_2NK, pair, strict=True):
                logits.append(engine.run({"images": pixels[None]})["logits"][0])
    full_NK, scaled_NK = (np.stack(logits) for logits in logits_2NK)
    top_N, top_scaled_N = full_NK.argmax(1), scaled_NK.argmax(1)
    return Change(
        side,
        grain,
        jpeg.scale_for(side, side, scaled_min_side(scaled)),
        len(images_NHW3),
        float((top_N == labels_N).mean()),
        float((top_scaled_N == labels_N).mean()),
        float((top_N == top_scaled_N).mean()),
        float(np.abs(full_NK - scaled_NK).max(1).mean()),
    )


if __name__ == "__main__":
    sys.exit(main())
