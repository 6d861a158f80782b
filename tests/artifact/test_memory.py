"""Decoding takes no more memory than the header of a file says; what waits to be drawn is small."""

from __future__ import annotations

import io
import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifact.image_bytes import ImageError, Limits
from artifact.manifest import Preprocessing
from artifact.preprocess import ORIGINAL_PIXELS, prepare, preprocess
from tests.support.images import photograph

SPEC = Preprocessing(resize=64, crop=64, mean=(0, 0, 0), std=(1, 1, 1))
SIDE = 2400
MARGIN = 6 * 2**20  # strips, rows, the allocator

# What a process of its own takes at most, as the kernel counts it, beside what it had before.
MEASURE = """
import sys
import zlib
from pathlib import Path
from artifact.image_bytes import Limits
from artifact.manifest import Preprocessing
from artifact.preprocess import prepare, preprocess

spec = Preprocessing(resize=64, crop=64, mean=(0, 0, 0), std=(1, 1, 1))
files = [Path(name).read_bytes() for name in sys.argv[2:4]]
preprocess(files[0], spec)


def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


Path("/proc/self/clear_refs").write_text("5")
before = most()
prepared = prepare(files[1], spec, Limits(), keep_original=sys.argv[1] == "original")
prepared.finish()
print(most() - before, prepared.num_bytes)
"""


def ramp() -> np.ndarray[Any, np.dtype[np.uint8]]:
    y, x = np.mgrid[:SIDE, :SIDE]
    return ((x * 255 // SIDE) ^ (y * 255 // SIDE)).astype(np.uint8)


def rgb() -> Image.Image:
    base = ramp()
    return Image.fromarray(np.stack([base, base.T, 255 - base], -1))


def with_alpha() -> Image.Image:
    image = rgb()
    image.putalpha(Image.fromarray(ramp()))
    return image


def floats() -> Image.Image:
    return Image.fromarray(ramp().astype(np.float32))


def sixteen_bits() -> Image.Image:
    return Image.fromarray(ramp().astype(np.uint16) * 257)


@pytest.mark.parametrize("kept", ["original", ""])
@pytest.mark.parametrize(
    ("make", "kind", "options"),
    [
        (rgb, "jpeg", {}),
        (rgb, "jpeg", {"progressive": True, "subsampling": 0}),
        (lambda: rgb().convert("CMYK"), "jpeg", {"progressive": True, "subsampling": 0}),
        (lambda: rgb().convert("L"), "png", {}),
        (lambda: rgb().quantize(64), "png", {"transparency": 1}),
        (with_alpha, "png", {}),
        (sixteen_bits, "png", {}),
        (with_alpha, "webp", {"lossless": True}),
        (lambda: rgb().quantize(64), "gif", {"transparency": 1}),
        (floats, "tiff", {"compression": "tiff_lzw"}),
        (with_alpha, "tiff", {"compression": "tiff_deflate"}),
        (rgb, "bmp", {}),
    ],
)
def test_no_more_than_the_header_says(
    make: Callable[[], Image.Image], kind: str, options: dict[str, Any], kept: str, tmp_path: Path
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    image = make()
    image.resize((100, 100), Image.Resampling.NEAREST).save(small, kind)
    image.save(large, kind, **options)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kept or "nothing", str(small), str(large)],
        capture_output=True,
        text=True,
        check=True,
    )
    took, said = map(int, done.stdout.split())
    assert took <= said + MARGIN
    assert said <= 17 * SIDE * SIDE + 4 * ORIGINAL_PIXELS


def test_a_header_is_enough() -> None:
    """A lossless WebP of one colour has few bytes, whatever its size."""
    file = io.BytesIO()
    Image.new("RGBA", (7000, 7000), (1, 2, 3, 4)).save(file, "webp", lossless=True)
    data = file.getvalue()
    assert len(data) < 3000
    assert prepare(data, SPEC, Limits()).num_bytes == 16 * 7000 * 7000


def test_so_many_scans_that_decoding_takes_seconds_are_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000)).save(file, "jpeg", progressive=True)
    data = file.getvalue()
    assert preprocess(data, SPEC).format == "jpeg"
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="cannot be decoded"):
        preprocess(data[:-2] + 20 * scan + data[-2:], SPEC)


@pytest.mark.parametrize("size", [(4000, 3000), (40_000, 500), (300, 200)])
def test_what_waits_to_be_drawn_is_small(size: tuple[int, int]) -> None:
    file = io.BytesIO()
    photograph(*size).save(file, "jpeg")
    image = preprocess(file.getvalue(), SPEC, keep_original=True)
    assert image.original is not None
    width, height = image.original.size
    assert width * height <= ORIGINAL_PIXELS
    assert math.isclose(width / height, size[0] / size[1], rel_tol=0.02)
    assert (image.width, image.height) == size
    box = image.box_in_original
    assert all(
        math.isclose(edge / side, whole / full)
        for edge, side, whole, full in zip(
            box, (width, height, width, height), image.model_box, size * 2, strict=True
        )
    )


def test_a_tile_counts_that_is_larger_than_its_image() -> None:
    """libtiff takes memory for whole tiles."""
    tile = zlib.compress(bytes(2048 * 2048))
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, 2048), (323, 2048)]
    tags += [(324, 8), (325, len(tile))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = struct.pack("<2sHI", b"II", 42, 8 + len(tile)) + tile + struct.pack("<H", len(tags)) + entries
    prepared = prepare(data + bytes(4), SPEC, Limits())
    assert prepared.num_bytes > 2048 * 2048
    assert prepared.finish().format == "tiff"
