"""JPEG -> image by simplejpeg, which is libjpeg-turbo without Pillow's copies.

The pixels are Pillow's, byte for byte: both call libjpeg-turbo with the same settings. What is unusual (CMYK,
12 bits, arithmetic coding), damaged or too large is left to Pillow, and so is everything where simplejpeg has
no wheel. This module knows no EXIF and no other formats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, _imaging

from artifact.image_bytes import JpegFile

try:
    import simplejpeg
except ImportError:  # there is no wheel for this machine
    simplejpeg = None

_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; all Huffman-coded
# Components -> the colours that they may be, and what to ask for.
_COLOURS = {1: (("Gray",), "GRAY"), 3: (("YCbCr", "RGB"), "RGBX")}


def scale_for(width: int, height: int, min_side: int) -> int:
    """Return the largest of 8, 4, 2 and 1 by which both sides can be divided and keep `min_side` pixels."""
    return next((scale for scale in (8, 4, 2) if min_side and min(width, height) >= min_side * scale), 1)


def decode(file: JpegFile, max_pixels: int, min_side: int = 0) -> Image.Image | None:
    """Return the picture, RGB or L; None if it must be left to Pillow, which says what is wrong with it.

    Args:
        min_side: decode at the scale that `scale_for` gives for it; 0: at full size.
    """
    frame = file.frame
    if simplejpeg is None or frame is None or frame.marker not in _FRAMES or frame.bits != 8:
        return None
    if frame.num_components not in _COLOURS or frame.width * frame.height > max_pixels:
        return None
    possible, wanted = _COLOURS[frame.num_components]
    if not file.one_scan:
        file.check_scans()
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(file.data)
        if (width, height) != (frame.width, frame.height) or colours not in possible:
            return None
        # The smallest scale of libjpeg's n/8 that is not below the size asked for: exactly that size. Strict:
        # what libjpeg only warns of is an error too.
        scale = scale_for(width, height, min_side)
        size = (-(-height // scale), -(-width // scale)) if scale > 1 else (0, 0)
        pixels = simplejpeg.decode_jpeg(file.data, wanted, False, False, *size, strict=True)
    except Exception:  # damaged, cut, out of memory
        return None
    if pixels.shape[:2] != (size if scale > 1 else (height, width)):
        return None
    return _image_of(pixels)


def _image_of(pixels_HWC: NDArray[np.uint8]) -> Image.Image:
    """Return an image of grey [H, W, 1] or RGBX [H, W, 4]; it shares the array's memory where that works."""
    height, width, channels = pixels_HWC.shape
    if channels == 1:
        return Image.frombuffer("L", (width, height), pixels_HWC, "raw", "L", 0, 1)
    if _SHARES_RGB:
        return _shared_rgb(pixels_HWC)
    return Image.frombytes("RGB", (width, height), pixels_HWC, "raw", "RGBX")


def _shared_rgb(pixels_HW4: NDArray[np.uint8]) -> Image.Image:
    """Return an RGB image over the memory of RGBX [H, W, 4].

    Pillow stores RGB in four bytes a pixel, but `Image.frombuffer` shares memory for RGBX only, and resizing
    four bands takes 1.3 times as long as three. This is what `frombuffer` does, with another mode.
    """
    height, width, _ = pixels_HW4.shape
    return Image.Image()._new(_imaging.map_buffer(pixels_HW4, (width, height), "raw", 0, ("RGB", 0, 1)))


def _shares_rgb() -> bool:
    """Return whether the installed Pillow has what `_shared_rgb` calls, which is not public."""
    pixels_HW4 = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    try:
        image = _shared_rgb(pixels_HW4)
        return (image.mode, image.size) == ("RGB", (2, 3)) and image.tobytes() == pixels_HW4[
            ..., :3
        ].tobytes()
    except Exception:
        return False


_SHARES_RGB = _shares_rgb()
