"""Image files of every format, made on the spot: sound ones, and the parts to make others of."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifact.manifest import Interpolation, Preprocessing
from artifact.preprocess import ImageError, Limits, preprocess


def spec(resize: int, crop: int, interpolation: Interpolation = "bilinear") -> Preprocessing:
    return Preprocessing(
        resize=resize, crop=crop, interpolation=interpolation, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:  # copies, because saving leaves settings of one format on an image
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image.copy().save(buffer, image_format, **options)
    return buffer.getvalue()


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, so that lossy formats come back close."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(data: bytes, size: int = 32) -> NDArray[np.int64]:
    return preprocess(data, spec(size, size)).pixels.astype(np.int64)


def code_of(data: bytes, limits: Limits = Limits()) -> str:
    """ "ok", or the code with which the file is refused."""
    try:
        preprocess(data, spec(24, 16), limits)
    except ImageError as error:
        return error.code if error.detail and error.hint else "unexplained"
    return "ok"


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(tags: dict[int, int], body: bytes, long_counts: dict[int, int] | None = None) -> bytes:
    """Little-endian, one directory; the body starts at byte 300."""
    counts = long_counts or {}
    entries = [struct.pack("<HHII", tag, 4, counts.get(tag, 1), value) for tag, value in sorted(tags.items())]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    return head.ljust(300, b"\0") + body


PHOTO = photograph(32, 32)
GREY, CMYK, FEW = PHOTO.convert("L"), PHOTO.convert("CMYK"), PHOTO.quantize(16)
FINE: dict[str, Any] = {"quality": 95, "subsampling": 0}  # of JPEG
FRAMES: dict[str, Any] = {"save_all": True, "append_images": [photograph(32, 32, seed=1)]}

CASES: dict[str, tuple[bytes, Image.Image, int]] = {  # file, what it shows, largest difference
    "jpeg": (encode(PHOTO, "JPEG", **FINE), PHOTO, 12),
    "jpeg progressive": (encode(PHOTO, "JPEG", progressive=True, **FINE), PHOTO, 12),
    "jpeg grey": (encode(GREY, "JPEG", quality=95), GREY, 8),
    "jpeg CMYK": (encode(CMYK, "JPEG", **FINE), PHOTO, 12),
    "jpeg several": (encode(PHOTO, "MPO", **FINE, **FRAMES), PHOTO, 12),
    "png": (encode(PHOTO, "PNG"), PHOTO, 0),
    "png grey": (encode(GREY, "PNG"), GREY, 0),
    "png 1 bit": (encode(PHOTO.convert("1"), "PNG"), PHOTO.convert("1"), 0),
    "png palette": (encode(FEW, "PNG", bits=4), FEW, 0),
    "png alpha": (encode(PHOTO.convert("RGBA"), "PNG"), PHOTO, 0),
    "png grey alpha": (encode(GREY.convert("LA"), "PNG"), GREY, 0),
    "png several": (encode(PHOTO, "PNG", **FRAMES), PHOTO, 0),
    "webp": (encode(PHOTO, "WEBP", quality=95), PHOTO, 16),
    "webp lossless": (encode(PHOTO, "WEBP", lossless=True), PHOTO, 0),
    "webp several": (encode(PHOTO, "WEBP", lossless=True, **FRAMES), PHOTO, 0),
    "gif": (encode(FEW, "GIF"), FEW, 0),
    "gif several": (encode(GREY, "GIF", **FRAMES), GREY, 0),
    "tiff": (encode(PHOTO, "TIFF"), PHOTO, 0),
    "tiff lzw": (encode(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO, 0),
    "tiff jpeg": (encode(PHOTO, "TIFF", compression="jpeg", quality=95), PHOTO, 12),
    "tiff CMYK": (encode(CMYK, "TIFF"), PHOTO, 1),
    "tiff float": (encode(PHOTO.convert("F"), "TIFF"), GREY, 1),
    "tiff 32 bit": (encode(PHOTO.convert("I"), "TIFF"), GREY, 1),
    "tiff big": (encode(PHOTO, "TIFF", big_tiff=True), PHOTO, 0),
    "tiff several": (encode(PHOTO, "TIFF", **FRAMES), PHOTO, 0),
    "bmp": (encode(PHOTO, "BMP"), PHOTO, 0),
    "bmp palette": (encode(FEW, "BMP"), FEW, 0),
}
