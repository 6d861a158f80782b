"""Every format shows its picture, from its first frame, at its depth, over white; nothing else gets out."""

from __future__ import annotations

import struct
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from artifact.preprocess import Limits, preprocess
from tests.support.images import CASES, chunk, code_of, encode, pixels_of, png, spec, tiff


@pytest.mark.parametrize("name", CASES)
def test_every_format_shows_its_picture(name: str) -> None:
    data, shown, tolerance = CASES[name]
    result = preprocess(data, spec(32, 32), keep_original=True)
    assert (result.format, result.width, result.height) == (name.split()[0], 32, 32)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.shape == (32, 32, 3)
    assert result.pixels.flags.c_contiguous
    assert result.pixels.flags.writeable
    assert np.abs(result.pixels.astype(int) - np.asarray(shown.convert("RGB")).astype(int)).max() <= tolerance
    assert result.original is not None
    assert np.array_equal(np.asarray(result.original), result.pixels)


def test_adobe_cmyk_is_not_shown_as_a_negative() -> None:
    data = encode(Image.new("CMYK", (32, 32), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in data
    assert pixels_of(data).min() >= 254


def test_transparency_is_laid_over_white() -> None:
    half = Image.new("RGBA", (32, 32), (0, 100, 200, 51))
    half.paste((9, 9, 9, 0), (0, 0, 16, 32))
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 0, 100, 200])
    cases: list[tuple[bytes, int | list[int], int | list[int]]] = [
        (encode(half, "PNG"), 255, [204, 224, 244]),
        (encode(half, "WEBP", lossless=True, exact=True), 255, [204, 224, 244]),
        (encode(half, "TIFF"), 255, [204, 224, 244]),
        (encode(palette, "PNG", transparency=1), 255, 255),
        (encode(palette, "PNG", transparency=b"\xff\x33"), [204, 224, 244], [204, 224, 244]),
        (encode(palette, "GIF", transparency=1), 255, 255),
    ]
    for data, left, right in cases:
        pixels = pixels_of(data)
        assert np.abs(pixels[:, :16] - left).max() <= 1
        assert np.abs(pixels[:, 16:] - right).max() <= 1


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key"),
    [
        (2, 0, b"\x40", (1,)),  # greys 1 and 0 of 0..3
        (16, 0, struct.pack(">2H", 300, 0), (300,)),
        (16, 2, struct.pack(">6H", 65535, 300, 0, 0, 0, 0), (65535, 300, 0)),
    ],
)
def test_a_transparent_colour_is_compared_at_its_own_depth(
    depth: int, colour: int, row: bytes, key: tuple[int, ...]
) -> None:
    transparent = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    pixels = pixels_of(png(2, 2, depth, colour, (b"\0" + row) * 2, transparent), size=2)
    assert pixels[:, 0].min() == 255
    assert pixels[:, 1].max() == 0


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = np.rint(values / 257.0)
    image = Image.fromarray(values)
    for data in (encode(image, "PNG"), encode(image, "TIFF"), encode(image, "TIFF", compression="tiff_lzw")):
        assert np.array_equal(pixels_of(data, size=256)[..., 1], wanted)
    tags = {256: 256, 257: 256, 258: 16, 259: 1, 273: 300, 277: 1, 278: 256, 279: 2 * 65536}
    for photometric, stored in [(1, values), (0, 65535 - values)]:  # black is zero, white is zero
        file = tiff(tags | {262: photometric}, stored.tobytes())
        assert np.array_equal(pixels_of(file, size=256)[..., 1], wanted)
    colour = np.stack([values[:64, :64]] * 3, axis=-1).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colour)
    assert np.abs(pixels_of(png(64, 64, 16, 2, rows), size=64)[..., 0] - wanted[:64, :64]).max() <= 1


def test_floats_take_the_white_that_fits_and_ignore_what_is_no_number() -> None:
    values = np.full((32, 32), 0.5, np.float32)
    values[0] = [np.nan, np.inf, -np.inf, 1.0] * 8
    pixels = pixels_of(encode(Image.fromarray(values), "TIFF"))
    assert pixels[0, :4, 0].tolist() == [0, 0, 0, 255]
    assert pixels[1:].min() == pixels[1:].max() == 128
    assert pixels_of(encode(Image.fromarray(values * 1e6), "TIFF"))[1:].max() == 128


def test_threads_get_their_own_answers_and_leave_the_warning_filters_alone() -> None:
    files = [data for data, _, _ in CASES.values()] * 4
    alone = [pixels_of(data) for data in files]
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(pixels_of, files))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
    assert list(warnings.filters) == before


CODES = {"ok", "empty_body", "unsupported_image", "truncated_image", "corrupt_image", "too_many_pixels"}
SMALL = Limits(max_pixels=1_000_000)
SIGNATURES = [
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"GIF89a",
    b"II*\0\x08\0\0\0",
    b"BM",
]


@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_random_bytes(signature: bytes, body: bytes) -> None:
    assert code_of(signature + body, SMALL) in CODES


@given(
    st.sampled_from(sorted(CASES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.floats(0, 1),
)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_mutated_files(name: str, changes: list[tuple[float, int]], headwards: float) -> None:
    data = bytearray(CASES[name][0])
    for where, value in changes:
        data[int(where ** (1 + 3 * headwards) * (len(data) - 1))] = value
    assert code_of(bytes(data), SMALL) in CODES
