"""A Pillow image of any mode -> RGB or grey of 8 bits; what takes several copies goes strip by strip."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

Box = tuple[int, int, int, int]  # x0, y0, x1, y1

STRIP_PIXELS = 262_144  # of a strip that is converted at a time


def to_rgb_or_grey(image: ImageFile.ImageFile) -> Image.Image:
    """Convert to RGB, transparency over white; grey without transparency stays L."""
    if image.has_transparency_data and image.mode[0] not in "IF":
        return _over_white(image)
    if image.mode in ("RGB", "L"):
        return image  # convert would copy
    if image.mode.startswith("I;16"):
        return _grey_of_16_bits(image)
    if image.mode in ("I", "F"):
        return _grey_of_numbers(image)
    return image.convert("RGB")


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, Box]]:
    """Yield parts of the image, from top to bottom, each with its box."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield image.crop(box), box


def _over_white(image: Image.Image) -> Image.Image:
    """Lay an image over white; RGB, which has one transparent colour, keeps its memory."""
    flat = image if image.mode == "RGB" and not image.readonly else Image.new("RGB", image.size)
    for strip, box in _strips(image):
        rgba = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        flat.paste(white, box)
    return flat


def _grey_of_16_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Scale [H, W] to 8 bits by rounding value/257; Pillow's own conversion clips at 255 instead."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    grey = Image.new("L", image.size)
    for strip, box in _strips(image):
        values = np.asarray(strip)
        if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
            values = values << 4 | values >> 8
        # (v + 128) // 257 without overflow: all values above 65,407 are white.
        rounded = ((np.minimum(values, 65_407) + np.uint16(128)) // np.uint16(257)).astype(np.uint8)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
            rounded = 255 - rounded
        if "transparency" in image.info:
            rounded[values == image.info["transparency"]] = 255
        grey.paste(Image.fromarray(rounded), box)
    return grey


def _grey_of_numbers(image: ImageFile.ImageFile) -> Image.Image:
    """Scale [H, W] of 32-bit integers or floats to 8 bits. The file does not state which value is white.

    White is the first of 1, 255 and 65,535 that no value exceeds, or else the largest value.
    """
    top = max(float(_numbers_of(strip).max()) for strip, _ in _strips(image))
    white = next((level for level in (1.0, 255.0, 65_535.0) if top <= level), top)
    grey = Image.new("L", image.size)
    for strip, box in _strips(image):
        levels = np.rint(np.clip(_numbers_of(strip), 0.0, white) / white * 255.0).astype(np.uint8)
        grey.paste(Image.fromarray(levels), box)
    return grey


def _numbers_of(strip: Image.Image) -> NDArray[np.float32]:
    """Return [H, W], with zero for what is no number."""
    return np.nan_to_num(np.asarray(strip, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
