"""JPEGs far larger than the input, decoded at 1/2, 1/4 or 1/8: the same by both decoders, and close."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifact import jpeg
from artifact.decode import Decoded, decode
from artifact.image_bytes import ImageError, Limits
from artifact.manifest import Interpolation, Preprocessing
from artifact.preprocess import preprocess
from tests.support.images import encode, photograph, spec

FULL = spec(16, 12)
SCALED = FULL.model_copy(update={"scaled_decoding": True})
OPTIONS: dict[str, dict[str, Any]] = {
    "4:2:0": {},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 1},
}


def noisy(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    smooth = np.asarray(photograph(width, height)).astype(np.int64)
    noise = (smooth + rng.integers(-20, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.mark.parametrize(
    ("width", "height", "min_side", "scale"),
    [
        (500, 375, 128, 2),
        (256, 256, 128, 2),
        (255, 300, 128, 1),
        (512, 900, 128, 4),
        (511, 900, 128, 2),
        (1024, 1024, 128, 8),
        (9000, 9000, 128, 8),
        (9000, 9000, 0, 1),
        (9000, 100, 128, 1),
    ],
)
def test_both_sides_keep_enough_pixels(width: int, height: int, min_side: int, scale: int) -> None:
    assert jpeg.scale_for(width, height, min_side) == scale


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pillow_decodes_to_the_same_pixels(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(64, 64), (65, 97), (127, 66), (131, 129), (257, 263), (300, 301), (64, 400)]
    files = [encode(noisy(*size, mode), "JPEG", **OPTIONS[name]) for size in sizes]
    ours = [decode(file, Limits(), 32) for file in files]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    for size, file, one in zip(sizes, files, ours, strict=True):
        other = decode(file, Limits(), 32)
        assert (one.scale, one.width, one.height) == (other.scale, other.width, other.height)
        assert one.image.tobytes() == other.image.tobytes()
        assert one.scale == jpeg.scale_for(*size, 32) > 1
        assert one.image.size == tuple(-(-side // one.scale) for side in size)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(131, 90), (90, 131), (197, 257), (400, 99), (99, 400)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_only_the_pixels_change_and_only_a_little(
    orientation: int, size: tuple[int, int], interpolation: Interpolation
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(*size), "JPEG", exif=exif, quality=95)
    specs = [one.model_copy(update={"interpolation": interpolation}) for one in (FULL, SCALED)]
    full, scaled = (preprocess(data, one, keep_original=True) for one in specs)
    assert (scaled.width, scaled.height, scaled.format) == (full.width, full.height, full.format)
    assert scaled.model_box == full.model_box
    assert full.original is not None
    assert scaled.original is not None
    assert scaled.original.tobytes() == full.original.tobytes()
    assert scaled.pixels.shape == full.pixels.shape
    difference = np.abs(scaled.pixels.astype(int) - full.pixels)
    assert 0 < difference.mean() < 3
    assert np.array_equal(scaled.pixels, preprocess(data, specs[1]).pixels)


def test_other_formats_and_small_photographs_keep_their_pixels() -> None:
    files = [encode(noisy(300, 200), image_format) for image_format in ("PNG", "WEBP", "TIFF", "BMP")]
    for data in [*files, encode(noisy(87, 200), "JPEG")]:
        assert np.array_equal(preprocess(data, SCALED).pixels, preprocess(data, FULL).pixels)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_plain_surface_stays_where_it_is(scale: int) -> None:
    """Sides that the scale does not divide: the edges of the areas are where they were."""
    halves = Image.new("RGB", (44 * scale + 1, 44 * scale + scale - 1), (200, 30, 30))
    halves.paste((30, 30, 200), (0, 0, halves.width // 2, halves.height))
    data = encode(halves, "JPEG", quality=100, subsampling=0)
    difference = np.abs(preprocess(data, SCALED).pixels.astype(int) - preprocess(data, FULL).pixels)
    assert difference.max() <= 12


@pytest.mark.parametrize("by_pillow", [False, True])
def test_the_whole_photograph_counts_for_the_limit(by_pillow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_pillow:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    data = encode(noisy(300, 200), "JPEG")
    with pytest.raises(ImageError) as error:
        preprocess(data, SCALED, Limits(max_pixels=300 * 200 - 1))
    assert error.value.code == "too_many_pixels"
    with pytest.raises(ImageError) as error:
        preprocess(data[:-50], SCALED)
    assert error.value.code == "truncated_image"


def test_a_tiff_that_pillow_turns_has_its_own_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded: Decoded = decode(encode(noisy(90, 70), "TIFF", exif=exif), Limits(), 32)
    assert (decoded.width, decoded.height, decoded.scale) == (70, 90, 1)


def test_a_manifest_names_it_only_if_it_is_on() -> None:
    assert "scaled_decoding" not in FULL.model_dump_json()
    assert "scaled_decoding" not in FULL.model_dump()
    assert '"scaled_decoding":true' in SCALED.model_dump_json()
    for one in (FULL, SCALED):
        assert Preprocessing.model_validate_json(one.model_dump_json()) == one
