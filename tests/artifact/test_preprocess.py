"""What the model sees of a photograph: upright, resized and cropped as torchvision does it, in one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from artifact.manifest import Interpolation, Preprocessing
from artifact.preprocess import preprocess
from tests.support.images import CASES, encode, photograph, pixels_of, spec


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations_all_show_the_same(image_format: str, orientation: int) -> None:
    upright = photograph(61, 40)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the Transpose that stores it
    turned = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encode(turned, image_format, exif=exif, **options.get(image_format, {}))
    result = preprocess(data, spec(36, 32), keep_original=True)
    wanted = preprocess(encode(upright, "PNG"), spec(36, 32), keep_original=True)
    tolerance = 12 if image_format == "JPEG" else 1
    assert (result.width, result.height, result.model_box) == (61, 40, wanted.model_box)
    assert np.abs(result.pixels.astype(int) - wanted.pixels).max() <= tolerance
    assert np.abs(np.asarray(result.original).astype(int) - np.asarray(wanted.original)).max() <= tolerance


def two_steps(image: Image.Image, spec: Preprocessing) -> NDArray[np.int64]:
    """What torchvision's Resize and CenterCrop do to a PIL image."""
    width, height = image.size
    short = min(width, height)
    size = (
        (spec.resize if width == short else int(spec.resize * width / short)),
        (spec.resize if height == short else int(spec.resize * height / short)),
    )
    resized = image.resize(size, Image.Resampling[spec.interpolation.upper()])
    left, top = (round((side - spec.crop) / 2.0) for side in size)
    return np.asarray(resized.crop((left, top, left + spec.crop, top + spec.crop))).astype(np.int64)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (33, 200), (64, 64), (3, 1), (17000, 70), (1, 300)])
def test_one_resampling_equals_resize_then_crop(size: tuple[int, int], interpolation: Interpolation) -> None:
    noise = np.random.default_rng(0).integers(80, 176, (size[1], size[0], 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "PNG", compress_level=1)
    for resize, crop in [(72, 64), (64, 64)]:
        one = preprocess(data, spec(resize, crop, interpolation)).pixels
        difference = np.abs(one - two_steps(Image.fromarray(noise), spec(resize, crop, interpolation)))
        assert difference.max() <= 2  # both round to 8 bits twice, and Pillow picks the order of its passes
        assert difference.mean() < 0.4


EXACT = [
    (600, 400),
    (400, 600),
    (96, 64),
    (384, 256),
    (500, 375),
    (375, 500),
    (300, 300),
    (31, 16),
    (128, 512),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", EXACT)
def test_pixels_are_those_of_resize_then_crop(size: tuple[int, int], interpolation: Interpolation) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "PNG", compress_level=1)
    for resize, crop in [(64, 64), (72, 64), (64, 56), (256, 224), (235, 224), (16, 1)]:
        pixels = preprocess(data, spec(resize, crop, interpolation)).pixels
        assert np.array_equal(pixels, two_steps(Image.fromarray(noise), spec(resize, crop, interpolation)))


@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([16, 24, 64, 72, 128]), st.floats(0, 1))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_pixels_are_those_of_resize_then_crop_at_any_size(
    short: int, more: int, resize: int, part: float
) -> None:
    size = (short, min(short + more, 4 * short))
    asked = spec(resize, max(1, int(part * resize)))
    noise = np.random.default_rng(short).integers(0, 256, (*size, 3), dtype=np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise.transpose(1, 0, 2))):
        pixels = preprocess(encode(image, "BMP"), asked).pixels
        assert np.array_equal(pixels, two_steps(image, asked))


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 90, 3), dtype=np.uint8)
    assert np.array_equal(pixels_of(encode(Image.fromarray(noise[:, :64]), "PNG"), size=64), noise[:, :64])
    assert np.array_equal(pixels_of(encode(Image.fromarray(noise), "PNG"), size=64), noise[:, 13:77])


@pytest.mark.parametrize(
    ("size", "resize", "crop", "box"),
    [
        ((500, 375), 224, 224, (62, 0, 438, 375)),
        ((375, 500), 224, 224, (0, 62, 375, 438)),
        ((400, 400), 256, 224, (25, 25, 375, 375)),
        ((1, 50000), 64, 64, (0, 25000, 1, 25001)),
    ],
)
def test_model_box(size: tuple[int, int], resize: int, crop: int, box: tuple[int, int, int, int]) -> None:
    assert preprocess(encode(Image.new("L", size), "PNG"), spec(resize, crop)).model_box == box


def test_a_crop_larger_than_the_resized_side_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="larger than the resized side"):
        preprocess(CASES["png"][0], spec(16, 24))
