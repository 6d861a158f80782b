"""Measure what it costs to make a model's input of a photograph, by size, input and decoder.

    python -m benchmarks.decoding                            # photographs that it makes up
    python -m benchmarks.decoding --images FOLDER

Times are processor time of one thread, the smallest of several rounds in which all ways take turns.
"python" is what a photograph of 8x8 pixels takes, most of which holds the interpreter's lock. The last
line printed is JSON. This module knows no server.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, features

from artifact import jpeg
from artifact.image_bytes import Limits
from artifact.manifest import Preprocessing
from artifact.preprocess import preprocess
from benchmarks.http_subject import made_up_photograph

SIZES = {
    "500x375": (500, 375),
    "600x400": (600, 400),
    "3 megapixels": (2048, 1536),
    "12 megapixels": (4032, 3024),
}
QUALITY = 90
ROUNDS = 7
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
    tiny, small = (
        encode(made_up_photograph(0).resize((8, 8))),
        spec.model_copy(update={"resize": 8, "crop": 8}),
    )

    def with_pillow() -> object:
        with without_simplejpeg():
            return preprocess(data, spec, limits)

    ways: dict[str, Callable[[], object]] = {
        "Pillow": with_pillow,
        "ours": lambda: preprocess(data, spec, limits),
    }
    ways["python"] = lambda: preprocess(tiny, small, limits)
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


if __name__ == "__main__":
    sys.exit(main())
