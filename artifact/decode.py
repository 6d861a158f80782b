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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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
    JpegFile,
    JpegFrame,
    Limits,
    check_pixels,
    damage,
    essentials,
    orientation,
    read_jpeg,
    sniff,
    webp_size,
)
from artifact.modes import to_rgb_or_grey

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
_WEBP_BYTES = 16  # a pixel: the decoder's canvas, the one before it, what it returns, and Pillow's image
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


class Opened(NamedTuple):
    """An image file of which only the header was read."""

    num_bytes: int  # of memory that `load` takes at most, beside the file
    scale: int  # at which `load` decodes
    load: Callable[[], Decoded]  # raises ImageError


def open_image(data: bytes, limits: Limits, min_side: int = 0) -> Opened:
    """Read the header of an image file; `load` returns the photograph.

    Transparency is laid over white, 16 bits and more are scaled to 8.

    Args:
        min_side: decode a JPEG at 1/2, 1/4 or 1/8 if both sides keep that many pixels; 0: at full size.

    Raises:
        ImageError: `data` is no usable image, as far as the header tells; the error says why.
    """
    image_format = sniff(data, limits)
    if image_format == "jpeg":
        file = read_jpeg(data)
        if (frame := file.frame) is not None:
            check_pixels(frame.width, frame.height, limits.max_pixels)
            scale = jpeg.scale_for(frame.width, frame.height, min_side)
            num_bytes = _bytes_of_jpeg(file, frame, scale)
            return Opened(num_bytes, scale, partial(_load_jpeg, file, frame, limits, min_side))
    if image_format == "webp":  # Pillow takes memory for all pixels when it opens such a file
        width, height = webp_size(data)
        check_pixels(width, height, limits.max_pixels)
        return Opened(_WEBP_BYTES * width * height, 1, lambda: _Picture(data, image_format, limits).load())
    picture = _Picture(data, image_format, limits)
    return Opened(picture.num_bytes, picture.scale(min_side), partial(picture.load, min_side))


def decode(data: bytes, limits: Limits, min_side: int = 0) -> Decoded:
    """Return the photograph in a file; see `open_image`."""
    return open_image(data, limits, min_side).load()


def _bytes_of_jpeg(file: JpegFile, frame: JpegFrame, scale: int) -> int:
    """Return the memory of the pixels, and of all coefficients if there are several scans; CMYK is copied."""
    pixel = {1: 1, 3: 4}.get(frame.num_components, 8) / scale**2
    if not file.one_scan:
        pixel += 2 * frame.num_components
    return int(pixel * frame.width * frame.height)


def _load_jpeg(file: JpegFile, frame: JpegFrame, limits: Limits, min_side: int) -> Decoded:
    image = jpeg.decode(file, limits.max_pixels, min_side)
    if image is None:
        return _Picture(file.data, "jpeg", limits).load(min_side)
    scale = jpeg.scale_for(frame.width, frame.height, min_side)
    return Decoded(image, frame.width, frame.height, scale, "jpeg", orientation(file.exif))


class _Picture:
    """An image file that Pillow has opened, and not loaded yet.

    Raises:
        ImageError: it cannot be opened.
    """

    def __init__(self, data: bytes, image_format: str, limits: Limits) -> None:
        if warnings.filters[0] != _SILENCE:  # another filter, such as pytest's, was put before ours
            warnings.filterwarnings("ignore", module=r"PIL\.")
        self._format = image_format
        self._num_bytes = len(data)
        self._source = _Source()
        self._image: ImageFile.ImageFile | None = None
        with self._errors():
            kept, self._exif = essentials(data, image_format)
            self._source = _Source(kept)
            self._image = _OPENERS[image_format](self._source)
            _check_size(self._image, limits)
            if isinstance(self._image, PngImagePlugin.PngImageFile):
                _scale_colour_key(self._image)

    @property
    def num_bytes(self) -> int:
        """The memory that `load` takes at most: of the pixels as stored, and as returned."""
        assert self._image is not None
        stored = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}.get(self._image.mode, 4)
        tile_width, tile_height = _tile_size(self._image)
        tile_bytes = (stored + 4) * tile_width * tile_height  # libtiff takes whole tiles
        return (stored + 4) * self._image.width * self._image.height + tile_bytes

    def scale(self, min_side: int) -> int:
        """Return the scale at which `load` decodes."""
        assert self._image is not None
        return jpeg.scale_for(*self._image.size, min_side) if self._format == "jpeg" else 1

    def load(self, min_side: int = 0) -> Decoded:
        """Return the photograph; raise ImageError if it cannot be decoded."""
        image = self._image
        assert image is not None
        with self._errors():
            full, scale = image.size, self.scale(min_side)
            if scale > 1:
                image.draft(None, (full[0] // scale, full[1] // scale))
            image.load()
            # Pillow turns a TIFF upright by itself while it loads it.
            exif = b"" if self._format == "tiff" else self._exif or image.info.get("exif", b"")
            picture = to_rgb_or_grey(image)
            width, height = full if scale > 1 else picture.size
            return Decoded(picture, width, height, scale, self._format, orientation(exif))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn any exception of Pillow's parsers into an ImageError."""
        try:
            yield
        except ImageError:
            raise
        except Exception as error:
            cut = self._source.ran_out or _strips_cut(self._image, self._num_bytes)
            raise damage(self._format, cut=cut) from error


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
    check_pixels(*_tile_size(image), limit)


def _tile_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """Return the size of a TIFF's tiles, which libtiff allocates even for a small image; (0, 0) without."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    width, height = (image.tag_v2.get(tag, 0) for tag in _TILE_SIZE)
    if not (isinstance(width, int) and isinstance(height, int)):
        raise damage("tiff", cut=False)
    return width, height


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


def _scale_colour_key(image: PngImagePlugin.PngImageFile) -> None:
    """Scale the colour that tRNS makes transparent to 8 bits, as Pillow scales the pixels only."""
    key, stored = image.info.get("transparency"), image.tile[0].args
    if isinstance(key, int) and image.mode == "L":
        levels = {"L;2": 4, "L;4": 16}.get(str(stored), 256)
        image.info["transparency"] = key % levels * (255 // (levels - 1))
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(part >> 8 if stored == "RGB;16B" else part & 255 for part in key)
