"""Image bytes -> RGB: JPEG, PNG, WebP, GIF, TIFF and BMP; of several frames, the first.

Whatever Pillow makes of a stranger's file ends in a picture or an `ImageError`; the size is checked between
its reading the headers and its decoding. Knows Pillow and numpy; knows nothing of models, crops or HTTP.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
    _imaging,
)

from artifact.image_bytes import ImageError, Limits, check_pixels, damage, essentials, orientation, sniff

# The plugins themselves, as Image.open tries neighbours too (MPO for JPEG) and has a pixel limit of its own.
_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}
# Bounds on what Pillow does at Python's speed: without them 20 MB of one-byte GIF comments take 13 seconds.
_MAX_READS = 250_000
_MAX_RUN_LENGTH_PIXELS = 4_000_000  # of BMP
_TILE_SIZE = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)

# Pillow tells of odd metadata by warnings and log records, and libtiff writes to stderr; none of it is news
# here. Python's warning filters cannot be changed for one thread alone before 3.14, so all this is done once.
warnings.filterwarnings("ignore", module=r"PIL\.")
_SILENCE = warnings.filters[0]
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(OSError, AttributeError):  # a Pillow built in another way just stays noisy
    _libtiff = ctypes.CDLL(_imaging.__file__)  # finds the symbols of the libraries that it is linked to
    _libtiff.TIFFSetErrorHandler(None)
    _libtiff.TIFFSetWarningHandler(None)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A photograph as it is stored, and how to show it."""

    image: Image.Image  # RGB
    format: str  # "jpeg", "png", "webp", "gif", "tiff", "bmp"
    orientation: int  # of EXIF; 1 to 8, where 1 is upright


def decode(data: bytes, limits: Limits) -> Decoded:
    """The photograph in the file, transparency over white, 16 bits and more scaled to 8.

    Raises:
        ImageError: whatever is wrong with `data`.
    """
    image_format = sniff(data, limits)
    if warnings.filters[0] != _SILENCE:  # someone, such as pytest, has put a filter before ours
        warnings.filterwarnings("ignore", module=r"PIL\.")
    source = _Source()
    image: ImageFile.ImageFile | None = None
    try:
        kept, exif = essentials(data, image_format, limits)
        source = _Source(kept)
        image = _OPENERS[image_format](source)
        _check_size(image, limits)
        if isinstance(image, PngImagePlugin.PngImageFile):
            _mend_colour_key(image)
        image.load()
        # Pillow turns a TIFF upright by itself while it loads it.
        exif = b"" if image_format == "tiff" else exif or image.info.get("exif", b"")
        return Decoded(_to_rgb(image), image_format, orientation(exif))
    except ImageError:
        raise
    except Exception as error:  # Pillow lets through whatever its parsers trip over
        raise damage(image_format, cut=source.ran_out or _strips_cut(image, len(data))) from error


class _Source(io.BytesIO):
    """The file that Pillow reads: bounds the number of reads, and notes one that came too late."""

    reads = 0
    ran_out = False

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise OSError("too many small parts")
        result = super().read(size)
        # Pillow reads pixels in blocks of MAXBLOCK, of which the last is short in a sound file too.
        if size and len(result) < size and (not result or size != ImageFile.MAXBLOCK):
            self.ran_out = True
        return result


def _check_size(image: ImageFile.ImageFile, limits: Limits) -> None:
    """Between opening, which reads headers, and loading, which allocates and decodes."""
    limit = limits.max_pixels
    if isinstance(image, BmpImagePlugin.BmpImageFile) and image.info.get("compression") in (1, 2):
        limit = min(limit, _MAX_RUN_LENGTH_PIXELS)
    check_pixels(*image.size, limit)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = (image.tag_v2.get(tag, 1) for tag in _TILE_SIZE)
        if not (isinstance(width, int) and isinstance(height, int)):
            raise damage("tiff", cut=False)
        check_pixels(width, height, limit)  # libtiff allocates whole tiles, of a small image too


def _strips_cut(image: ImageFile.ImageFile | None, num_bytes: int) -> bool:
    """Whether a TIFF names pixels beyond the file's end, which libtiff reads without asking `_Source`."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    try:
        offsets = tags.get(TiffImagePlugin.STRIPOFFSETS) or tags[TiffImagePlugin.TILEOFFSETS]
        counts = tags.get(TiffImagePlugin.STRIPBYTECOUNTS) or tags[TiffImagePlugin.TILEBYTECOUNTS]
        return any(offset + count > num_bytes for offset, count in zip(offsets, counts, strict=False))
    except (KeyError, TypeError, ValueError, struct.error):  # the tags are what is damaged
        return False


def _to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """RGB of the same size, transparency over white."""
    if image.mode == "RGB" and not image.has_transparency_data:
        return image  # convert would copy
    if image.mode.startswith("I;16"):
        return Image.fromarray(_grey_of_16_bits(image)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_grey_of_numbers(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=alpha)
    return white


def _grey_of_16_bits(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """[H, W] scaled to 8 bits, value/257 rounded, which Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        values = values << 4 | values >> 8
    # (v + 128) // 257, kept from overflowing: all above 65,407 are white.
    rounded = (np.minimum(values, 65_407) + np.uint16(128)) // np.uint16(257)
    grey: NDArray[np.uint8] = rounded.astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return grey


def _grey_of_numbers(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """[H, W] of 32-bit integers or floats, whose white no file states.

    It is taken to be the first of 1, 255 and 65,535 that no value exceeds, or else the largest value.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    white = next((level for level in (1.0, 255.0, 65_535.0) if top <= level), top)
    grey: NDArray[np.uint8] = np.rint(np.clip(values, 0.0, white) / white * 255.0).astype(np.uint8)
    return grey


def _mend_colour_key(image: PngImagePlugin.PngImageFile) -> None:
    """Bring the one colour that tRNS makes transparent to 8 bits, as Pillow does with the pixels alone."""
    key, stored = image.info.get("transparency"), image.tile[0].args
    if isinstance(key, int) and image.mode == "L":
        levels = {"L;2": 4, "L;4": 16}.get(str(stored), 256)
        image.info["transparency"] = key % levels * (255 // (levels - 1))
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(part >> 8 if stored == "RGB;16B" else part & 255 for part in key)
