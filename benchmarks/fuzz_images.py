"""Post corrupted and random bodies to a server, or to preprocess itself, and count what comes back.

    python benchmarks/fuzz_images.py --count 100000 --seed 0 --url http://127.0.0.1:8000
    python benchmarks/fuzz_images.py --count 20000                       # in this process, without a server
    python benchmarks/fuzz_images.py --seed 0 --first 1234 --count 1     # case 1234 again

Case i depends on the seed and i alone. A failure is a 5xx other than 503, a lost connection, an answer that
takes longer than --timeout, or in this process anything but an ImageError; its body is saved and the exit
code is 1. The last line printed is JSON. Knows the HTTP contract and image files, not the server.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a benchmark runs as a script

from models.manifest import Preprocessing
from models.preprocess import ImageError, preprocess

MAX_FAILURES = 20  # after which there is no point in going on
CONTENT_TYPES = ("image/jpeg", "image/png", "application/octet-stream", None)
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Send = Callable[[int, bytes, random.Random], str]  # a case -> what came back; raises what is a failure


class Failure(Exception):
    """The case must not end like this."""


@dataclass
class Tally:
    """What came back, gathered from all workers."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_ms: float = 0.0
    slowest_case: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:  # copies, because saving leaves settings of one format on an image
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image.copy().save(buffer, image_format, **options)
    return buffer.getvalue()


def sound_images() -> list[bytes]:
    """Small images of every format and of most of its kinds."""
    photo = Image.effect_mandelbrot((40, 30), (-2, -1.2, 1, 1.2), 50).convert("RGB")
    grey, palette, deep = photo.convert("L"), photo.quantize(16), grey_16(photo)
    alpha = photo.convert("RGBA")
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    second = [photo.transpose(Image.Transpose.ROTATE_180)]
    tiffs = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")
    return [
        encode(photo, "JPEG", exif=exif, comment=b"hello"),
        encode(photo, "JPEG", progressive=True, optimize=True),
        encode(photo.convert("CMYK"), "JPEG"),
        encode(grey, "JPEG", restart_marker_rows=1),
        encode(photo, "MPO", save_all=True, append_images=second),
        encode(photo, "PNG", exif=exif),
        encode(alpha, "PNG"),
        encode(palette, "PNG", bits=4, transparency=3),
        encode(deep, "PNG"),
        encode(grey.convert("1"), "PNG"),
        encode(photo, "PNG", save_all=True, append_images=second),
        encode(photo, "WEBP"),
        encode(alpha, "WEBP", lossless=True, exif=exif),
        encode(photo, "WEBP", save_all=True, append_images=second),
        encode(palette, "GIF", transparency=3, comment=b"hello"),
        encode(photo, "GIF", save_all=True, append_images=second, interlace=1),
        *(encode(photo, "TIFF", compression=kind) for kind in tiffs),
        encode(grey.convert("1"), "TIFF", compression="group4"),
        encode(deep, "TIFF", exif=exif),
        encode(grey.convert("F"), "TIFF"),
        encode(alpha, "TIFF", save_all=True, append_images=second, compression="tiff_lzw"),
        encode(photo.convert("CMYK"), "TIFF", big_tiff=True),
        encode(photo, "BMP"),
        encode(palette, "BMP"),
    ]


def grey_16(photo: Image.Image) -> Image.Image:
    return photo.convert("I").point(lambda value: value * 257).convert("I;16")


def near_the_head(chance: random.Random, size: int) -> int:
    """A position; half of them in the first 64 bytes, where headers are."""
    return chance.randrange(min(size, 64) if chance.random() < 0.5 else size)


def flip_bits(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    for _flip in range(chance.choice((1, 1, 2, 4, 16, 64))):
        data[near_the_head(chance, len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def set_numbers(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    for _number in range(chance.choice((1, 1, 2, 4))):
        size, where = chance.choice((1, 2, 4)), near_the_head(chance, len(data))
        value = chance.choice(NUMBERS) & (256**size - 1)
        data[where : where + size] = value.to_bytes(size, chance.choice(("big", "little")))
    return bytes(data)


def truncate(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def header_only(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    return bytes(data[: chance.randrange(1, 64)]) + chance.randbytes(chance.choice((0, 1, 20, 500)))


def splice(chance: random.Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: chance.randrange(len(data))]) + other[chance.randrange(len(other)) :]


def swap_signature(chance: random.Random, data: bytearray, other: bytes) -> bytes:
    size = chance.choice((2, 3, 4, 8, 16, 30))
    return other[:size] + bytes(data[size:])


def repeat_part(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.choice((1, 4, 12, 100, 1000)))
    return bytes(data[:end] + data[start:end] * chance.choice((1, 2, 30)) + data[end:])


def drop_part(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    start = near_the_head(chance, len(data))
    return bytes(data[:start] + data[start + chance.choice((1, 2, 4, 12, 100)) :])


def random_bytes(chance: random.Random, _data: bytearray, _: bytes) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 3, 16, 300, 5000)))


MUTATIONS = (
    flip_bits, flip_bits, set_numbers, set_numbers, truncate, header_only,
    splice, swap_signature, repeat_part, drop_part, random_bytes,
)  # fmt: skip


def body_of(chance: random.Random, seeds: list[bytes]) -> bytes:
    return chance.choice(MUTATIONS)(chance, bytearray(chance.choice(seeds)), chance.choice(seeds))


def sender_to(url: str, timeout: float) -> Send:
    """For one worker: a keep-alive connection, opened again when the server has closed it."""
    address = urlsplit(url)
    assert address.hostname
    connection = http.client.HTTPConnection(address.hostname, address.port or 80, timeout=timeout)
    prefix = address.path.rstrip("/")

    def send(index: int, body: bytes, chance: random.Random) -> str:
        path = prefix + ("/introspect?maps=none" if index % 10 == 9 else "/classify")
        content_type = chance.choice(CONTENT_TYPES)
        headers = {"Content-Type": content_type} if content_type else {}
        if chance.random() < 0.1:
            body, headers = multipart(chance, body), {"Content-Type": "multipart/form-data; boundary=edge"}
        for attempt in (1, 2):
            reused = connection.sock is not None
            try:
                connection.request("POST", path, body, headers)
                response = connection.getresponse()
                text = response.read()
                break
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                # A server may close an idle connection just as it is used again; that alone is no failure.
                if attempt == 2 or not reused or isinstance(error, TimeoutError):
                    raise Failure(f"{path}: {type(error).__name__}: {error}") from error
        if response.status >= 500 and response.status != 503:
            raise Failure(f"{path}: status {response.status}: {text[:200]!r}")
        return f"{response.status} {code_in(text)}" if response.status >= 400 else str(response.status)

    return send


def multipart(chance: random.Random, body: bytes) -> bytes:
    part = b'--edge\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + body + b"\r\n"
    return part * chance.choice((1, 1, 2)) + chance.choice((b"--edge--\r\n", b"--edge--\r\n", b"--ed", b""))


def code_in(text: bytes) -> str:
    """The code of a problem+json answer; an error without one is a failure too."""
    try:
        return str(json.loads(text)["code"])
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"an error that is no problem+json: {text[:200]!r}") from error


def in_process() -> Send:
    spec = Preprocessing(resize=72, crop=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def send(index: int, body: bytes, chance: random.Random) -> str:
        try:
            preprocess(body, spec, keep_original=index % 10 == 9)
        except ImageError as error:
            return error.code
        return "ok"

    return send


def work(indices: range, arguments: argparse.Namespace, seeds: list[bytes], send: Send, tally: Tally) -> None:
    """One worker's cases."""
    for index in indices:
        if len(tally.failures) >= MAX_FAILURES:
            return
        chance = random.Random(f"{arguments.seed}/{index}")
        body = body_of(chance, seeds)
        started = time.perf_counter()
        try:
            outcome, failure = send(index, body, chance), ""
        except Exception as error:  # in this process: what preprocess let through
            outcome, failure = "failed", f"{type(error).__name__}: {error}"
        elapsed = time.perf_counter() - started
        if not failure and elapsed > arguments.timeout:
            failure = f"took {elapsed:.1f} s"
        with tally.lock:
            tally.outcomes[outcome] += 1
            if elapsed * 1000 > tally.slowest_ms:
                tally.slowest_ms, tally.slowest_case = elapsed * 1000, index
            if failure:
                arguments.failures.mkdir(parents=True, exist_ok=True)
                path = arguments.failures / f"seed{arguments.seed}-case{index}.bin"
                path.write_bytes(body)
                tally.failures.append(failure)
                print(f"seed {arguments.seed} case {index}: {failure}; saved as {path}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000, help="how many cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--url", help="of the server; without it, preprocess is called in this process")
    parser.add_argument("--workers", type=int, default=4, help="connections at a time (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds a case may take (default: %(default)s)"
    )
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where bodies are saved")
    arguments = parser.parse_args()

    seeds, tally = sound_images(), Tally()
    cases = range(arguments.first, arguments.first + arguments.count)
    started = time.perf_counter()
    threads = []
    for worker in range(arguments.workers):
        send = sender_to(arguments.url, arguments.timeout) if arguments.url else in_process()
        mine = cases[worker :: arguments.workers]
        threads.append(threading.Thread(target=work, args=(mine, arguments, seeds, send, tally), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    done = sum(tally.outcomes.values())
    report = {
        "target": arguments.url or "preprocess",
        "seed": arguments.seed,
        "count": done,
        "outcomes": dict(sorted(tally.outcomes.items())),
        "failures": len(tally.failures),
        "slowest_ms": round(tally.slowest_ms, 1),
        "slowest_case": tally.slowest_case,
        "requests_per_second": round(done / seconds, 1),
    }
    print(json.dumps(report))
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
