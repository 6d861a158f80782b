"""simplejpeg's pixels are Pillow's; what is unusual or damaged is left to Pillow, with the same answer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from artifact import jpeg
from artifact.image_bytes import ImageError, read_jpeg
from artifact.preprocess import Limits, preprocess
from tests.support.images import CMYK, PHOTO, code_of, encode, photograph, pixels_of, spec

simplejpeg = pytest.importorskip("simplejpeg")

SIZES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (2, 3),
    (7, 8),
    (8, 7),
    (15, 17),
    (16, 16),
    (17, 33),
    (33, 17),
    (64, 48),
    (131, 97),
]
SUBSAMPLINGS = ["444", "422", "420", "440", "411", "Gray"]
OPTIONS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "fine": {"quality": 100, "subsampling": 0},
    "coarse": {"quality": 5},
    "progressive": {"progressive": True},
    "optimised tables": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 1},
    "Adobe RGB": {"keep_rgb": True},
    "4:2:2": {"subsampling": 1, "progressive": True},
    "EXIF": {"exif": b"Exif\0\0II*\0\x08" + bytes(9)},
    "comment": {"comment": b"x" * 5000},
}


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    smooth = np.asarray(photograph(width, height)).astype(np.int64)
    return Image.fromarray((smooth + rng.integers(-40, 40, smooth.shape)).clip(0, 255).astype(np.uint8))


def of_pillow(data: bytes) -> Image.Image:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.load()
    return image


def assert_same(data: bytes) -> None:
    ours, theirs = jpeg.decode(read_jpeg(data), 10**6), of_pillow(data)
    assert ours is not None
    assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", OPTIONS)
def test_the_pixels_are_pillows(name: str) -> None:
    for size in SIZES:
        assert_same(encode(noise(*size), "JPEG", **OPTIONS[name]))
        assert_same(encode(noise(*size).convert("L"), "JPEG", **OPTIONS[name] | {"keep_rgb": False}))


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_the_pixels_are_pillows_in_every_subsampling(subsampling: str) -> None:
    for size in SIZES:
        data = simplejpeg.encode_jpeg(np.array(noise(*size)), quality=80, colorsubsampling=subsampling)
        assert_same(data)


def test_what_follows_the_picture_does_not_matter() -> None:
    data = encode(noise(17, 33), "JPEG")
    for file in (
        data + bytes(99),
        data + data,
        data + b"\xff\xd9",
        encode(noise(17, 33), "MPO", save_all=True),
    ):
        assert_same(file)


def with_frame(data: bytes, at: int, value: int) -> bytes:
    """Change a byte of the frame header; byte 0 is its marker's second byte."""
    start = data.index(b"\xff\xc0") + 1
    return data[: start + at] + bytes([value]) + data[start + at + 1 :]


BASELINE = encode(PHOTO, "JPEG")
LEFT_TO_PILLOW = {
    "CMYK": encode(CMYK, "JPEG"),
    "cut": BASELINE[:-40],
    "without end": BASELINE[:-2],
    "12 bits": with_frame(BASELINE, 3, 12),
    "arithmetic coding": with_frame(BASELINE, 0, 0xC9),
    "two components": with_frame(BASELINE, 8, 2),
    "no rows": with_frame(with_frame(BASELINE, 4, 0), 5, 0),
    "two frames": BASELINE[:2] + BASELINE[BASELINE.index(b"\xff\xc0") :][:19] + BASELINE[2:],
    "a warning": BASELINE[:20] + bytes(3) + BASELINE[20:],
    "damage": BASELINE[:-30] + b"\xff\xd3" + BASELINE[-28:],
}


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_what_is_unusual_or_damaged_is_left_to_pillow(name: str) -> None:
    data = LEFT_TO_PILLOW[name]
    assert jpeg.decode(read_jpeg(data), 10**6) is None
    with without_simplejpeg():
        wanted = outcome(data)
    assert outcome(data) == wanted


def test_the_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_args, **_kwargs: pytest.fail("it was decoded"))
    assert jpeg.decode(read_jpeg(BASELINE), 32 * 32 - 1) is None
    assert code_of(BASELINE, Limits(max_pixels=32 * 32 - 1)) == "too_many_pixels"


def test_two_readers_of_the_header_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in [(32, 33, "YCbCr", "420"), (33, 32, "YCbCr", "420"), (32, 32, "YCCK", "420")]:
        monkeypatch.setattr(simplejpeg, "decode_jpeg_header", lambda _data, answer=answer: answer)
        assert jpeg.decode(read_jpeg(BASELINE), 10**6) is None


@pytest.mark.parametrize("grey", [False, True])
def test_every_way_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch, grey: bool) -> None:
    data = encode(noise(61, 40).convert("L" if grey else "RGB"), "JPEG")
    results = [preprocess(data, spec(24, 16), keep_original=True)]
    monkeypatch.setattr(jpeg, "_SHARES_RGB", False)
    results.append(preprocess(data, spec(24, 16), keep_original=True))
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    results.append(preprocess(data, spec(24, 16), keep_original=True))
    for one in results:
        assert one.original is not None
        assert one.original.mode == "RGB"
        assert one.original.tobytes() == of_pillow(data).convert("RGB").tobytes()
        assert np.array_equal(one.pixels, results[0].pixels)


def test_the_memory_lives_as_long_as_the_picture() -> None:
    data = encode(noise(131, 97), "JPEG")
    pictures = [jpeg.decode(read_jpeg(data), 10**6) for _ in range(50)]
    assert len({picture.tobytes() for picture in pictures if picture}) == 1
    assert np.array_equal(pixels_of(data), pixels_of(data))


# --- hostile files ---------------------------------------------------------------------------------


def outcome(data: bytes) -> object:
    """The pixels, or everything that the error says."""
    try:
        result = preprocess(data, spec(24, 16), Limits(max_pixels=10**6), keep_original=True)
    except ImageError as error:
        return error.code, error.detail, error.hint
    assert result.original is not None
    return result.pixels.tobytes(), result.model_box, result.original.tobytes()


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jpeg, "simplejpeg", None)
        yield


SEEDS = [
    encode(PHOTO, "JPEG", **options)
    for options in (
        {},
        {"progressive": True},
        {"subsampling": 0, "restart_marker_blocks": 2},
        OPTIONS["EXIF"],
    )
] + [encode(PHOTO.convert("L"), "JPEG")]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=3)), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=400, derandomize=True, deadline=None)
def test_damaged_files_are_answered_as_without_it(
    seed: bytes, changes: list[tuple[float, bytes]], insert: bool
) -> None:
    data = seed
    for where, change in changes:
        start = int(where**2 * len(data))
        data = data[:start] + change + data[start + (0 if insert else max(1, len(change))) :]
    with without_simplejpeg():
        wanted = outcome(data)
    assert outcome(data) == wanted
