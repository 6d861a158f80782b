"""Image bytes -> RGB: JPEG, PNG, WebP, GIF, TIFF and BMP; of several frames, the first.

Every file, however damaged, gives a picture or an `ImageError`. The size is checked after Pillow has read the
headers and before it decodes. This module knows Pillow and numpy; it knows no models, crops or HTTP.
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

from artifact import jpeg
from artifact.image_bytes import (
    ImageError,
    Limits,
    check_pixels,
    damage,
    essentials,
    orientation,
    read_jpeg,
    sniff,
)

# The plugins are called directly: Image.open tries similar formats too (MPO for JPEG), and has a pixel limit.
_OPENERS: dict[str, type[ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.JpegImageFile,
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
}
# Bounds on Pillow's loops in Python: without them 20 MB of one-byte GIF comments take 13 seconds.
_MAX_READS = 250_000
_MAX_RUN_LENGTH_PIXELS = 4_000_000  # of BMP
_TILE_SIZE = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)

# Pillow reports odd metadata in warnings and log records, and libtiff on stderr; none of it matters here.
# Before Python 3.14 warning filters cannot be changed for one thread alone, so this is done once, on import.
warnings.filterwarnings("ignore", module=r"PIL\.")
_SILENCE = warnings.filters[0]
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(OSError, AttributeError):  # another build of Pillow keeps writing to stderr
    _libtiff = ctypes.CDLL(_imaging.__file__)  # finds the symbols of the libraries that it is linked to
    _libtiff.TIFFSetErrorHandler(None)
    _libtiff.TIFFSetWarningHandler(None)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A photograph as it is stored, and its orientation."""

    image: Image.Image  # RGB, or L if it has no colours; of each side 1/scale, rounded up
    width: int  # of the file, as are the next ones
    height: int
    scale: int  # 1, or of a JPEG that was decoded smaller: 2, 4 or 8
    format: str  # "jpeg", "png", "webp", "gif", "tiff", "bmp"
    orientation: int  # of EXIF; 1 to 8, where 1 is upright


def decode(data: bytes, limits: Limits, min_side: int = 0) -> Decoded:
    """Return the photograph in a file, transparency over white, 16 bits and more scaled to 8.

    Args:
        min_side: decode a JPEG at 1/2, 1/4 or 1/8 if both sides keep that many pixels; 0: at full size.

    Raises:
        ImageError: `data` is no usable image; the error says why.
    """
    image_format = sniff(data, limits)
    if image_format == "jpeg":
        file = read_jpeg(data)
        picture = jpeg.decode(file, limits.max_pixels, min_side)
        if picture is not None and file.frame is not None:
            width, height = file.frame.width, file.frame.height
            scale = jpeg.scale_for(width, height, min_side)
            return Decoded(picture, width, height, scale, image_format, orientation(file.exif))
    if warnings.filters[0] != _SILENCE:  # another filter, such as pytest's, was put before ours
        warnings.filterwarnings("ignore", module=r"PIL\.")
    source = _Source()
    image: ImageFile.ImageFile | None = None
    try:
        kept, exif = essentials(data, image_format, limits)
        source = _Source(kept)
        image = _OPENERS[image_format](source)
        _check_size(image, limits)
        if isinstance(image, PngImagePlugin.PngImageFile):
            _scale_colour_key(image)
        full, scale = image.size, 1
        if image_format == "jpeg" and (scale := jpeg.scale_for(*full, min_side)) > 1:
            image.draft(None, (full[0] // scale, full[1] // scale))
        image.load()
        # Pillow turns a TIFF upright by itself while it loads it.
        exif = b"" if image_format == "tiff" else exif or image.info.get("exif", b"")
        picture = _to_rgb_or_grey(image)
        width, height = full if scale > 1 else picture.size
        return Decoded(picture, width, height, scale, image_format, orientation(exif))
    except ImageError:
        raise
    except Exception as error:  # Pillow passes on any exception of its parsers
        raise damage(image_format, cut=source.ran_out or _strips_cut(image, len(data))) from error


class _Source(io.BytesIO):
    """The file that Pillow reads; it bounds the number of reads, and notes a read beyond the end."""

    reads = 0
    ran_out = False

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > _MAX_READS:
            raise OSError("too many small parts")
        result = super().read(size)
        # Pillow reads pixels in blocks of MAXBLOCK; the last one is short in an undamaged file too.
        if size and len(result) < size and (not result or size != ImageFile.MAXBLOCK):
            self.ran_out = True
        return result


def _check_size(image: ImageFile.ImageFile, limits: Limits) -> None:
    """Raise ImageError if the image is too large, before loading allocates memory and decodes."""
    limit = limits.max_pixels
    if isinstance(image, BmpImagePlugin.BmpImageFile) and image.info.get("compression") in (1, 2):
        limit = min(limit, _MAX_RUN_LENGTH_PIXELS)
    check_pixels(*image.size, limit)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        width, height = (image.tag_v2.get(tag, 1) for tag in _TILE_SIZE)
        if not (isinstance(width, int) and isinstance(height, int)):
            raise damage("tiff", cut=False)
        check_pixels(width, height, limit)  # libtiff allocates whole tiles, even for a small image


def _strips_cut(image: ImageFile.ImageFile | None, num_bytes: int) -> bool:
    """Return whether a TIFF refers to pixels beyond the file's end, which libtiff reads without `_Source`."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    try:
        offsets = tags.get(TiffImagePlugin.STRIPOFFSETS) or tags[TiffImagePlugin.TILEOFFSETS]
        counts = tags.get(TiffImagePlugin.STRIPBYTECOUNTS) or tags[TiffImagePlugin.TILEBYTECOUNTS]
        return any(offset + count > num_bytes for offset, count in zip(offsets, counts, strict=False))
    except (KeyError, TypeError, ValueError, struct.error):  # the tags are damaged
        return False


def _to_rgb_or_grey(image: ImageFile.ImageFile) -> Image.Image:
    """Convert to RGB, transparency over white; grey without transparency stays L."""
    if image.mode in ("RGB", "L") and not image.has_transparency_data:
        return image  # convert would copy
    if image.mode.startswith("I;16"):
        return Image.fromarray(_grey_of_16_bits(image))
    if image.mode in ("I", "F"):
        return Image.fromarray(_grey_of_numbers(image))
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
    """Scale [H, W] to 8 bits by rounding value/257; Pillow's own conversion clips at 255 instead."""
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        values = values << 4 | values >> 8
    # (v + 128) // 257 without overflow: all values above 65,407 are white.
    rounded = (np.minimum(values, 65_407) + np.uint16(128)) // np.uint16(257)
    grey: NDArray[np.uint8] = rounded.astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        grey = 255 - grey
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255
    return grey


def _grey_of_numbers(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Scale [H, W] of 32-bit integers or floats to 8 bits. The file does not state which value is white.

    White is the first of 1, 255 and 65,535 that no value exceeds, or else the largest value.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max())
    white = next((level for level in (1.0, 255.0, 65_535.0) if top <= level), top)
    grey: NDArray[np.uint8] = np.rint(np.clip(values, 0.0, white) / white * 255.0).astype(np.uint8)
    return grey


def _scale_colour_key(image: PngImagePlugin.PngImageFile) -> None:
    """Scale the colour that tRNS makes transparent to 8 bits, as Pillow scales the pixels only."""
    key, stored = image.info.get("transparency"), image.tile[0].args
    if isinstance(key, int) and image.mode == "L":
        levels = {"L;2": 4, "L;4": 16}.get(str(stored), 256)
        image.info["transparency"] = key % levels * (255 // (levels - 1))
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(part >> 8 if stored == "RGB;16B" else part & 255 for part in key)
