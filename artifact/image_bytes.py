"""What an image file says of itself before it is decoded: its format, its end, its size, which way is up.

Pure bytes and the standard library. Files come from strangers: every loop here is bounded, every length is
checked, and what is wrong ends in an `ImageError`. Knows nothing of Pillow; artifact/decode.py does the rest.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from artifact.errors import ResiduumError

# Bounds on what decoders do at Python's speed, or once per scan: without them a file of 20 MB takes 17
# seconds (a JPEG of empty segments, a TIFF of five million strips) or 20 minutes (a JPEG of empty scans).
MAX_PARTS = 65_536  # JPEG segments before the first scan, PNG chunks, TIFF tags
MAX_STRIPS = 65_536
MAX_SIDE = 1_000_000  # rows cost memory of their own, and this is no photograph

_SIGNATURES = {
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF.{4}WEBPVP8[ LX]", re.DOTALL),
    "gif": re.compile(rb"GIF8[79]a"),
    "tiff": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "bmp": re.compile(rb"BM"),
}
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")  # passes over fill bytes, and over junk as libjpeg does
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_STRIP_OFFSETS, _TILE_OFFSETS, _ORIENTATION = 273, 324, 274  # TIFF 6.0


class ImageError(ResiduumError):
    """The bytes are no picture that can be shown to a model.

    `code` is one of empty_body, too_many_bytes, unsupported_image, truncated_image, corrupt_image,
    too_many_pixels; `detail` says what is wrong with this one, `hint` what its sender can do.
    """

    def __init__(self, code: str, detail: str, hint: str = "", **members: Any) -> None:
        super().__init__(detail, hint, **members)
        self.code = code


class ImageTooLong(ImageError):
    """The file has more bytes than are accepted; its code is too_many_bytes."""


@dataclass(frozen=True)
class Limits:
    """What is refused before decoding, which takes 4 bytes a pixel of a JPEG, up to 24 of a float TIFF."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


def damage(image_format: str, *, cut: bool) -> ImageError:
    """The error for a file that has the signature of a format, but ends too early or cannot be decoded."""
    name = image_format.upper()
    if cut:
        return ImageError("truncated_image", f"The {name} ends too early.", "Send the whole file.")
    detail = f"The {name} cannot be decoded: it is damaged, or of a kind that is not supported."
    return ImageError("corrupt_image", detail, "Open it in an image editor and save it as JPEG or PNG.")


def check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit or max(width, height) > MAX_SIDE:
        most = f"{limit:,}, and {MAX_SIDE:,} a side," if width * height <= limit else f"{limit:,}"
        detail = f"The image has {width:,} x {height:,} pixels; at most {most} are accepted."
        raise ImageError("too_many_pixels", detail, "Send a smaller copy: models see a few hundred a side.")


def sniff(data: bytes, limits: Limits) -> str:
    """ "jpeg", "png", "webp", "gif", "tiff" or "bmp"."""
    if not data:
        raise ImageError("empty_body", "There are no bytes where an image should be.", "Send an image file.")
    if len(data) > limits.max_bytes:
        detail = f"The image has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted."
        raise ImageTooLong("too_many_bytes", detail, "Send a smaller or more strongly compressed copy.")
    for image_format, signature in _SIGNATURES.items():
        if signature.match(data):
            return image_format
    hint = "Send JPEG, PNG, WebP, GIF, TIFF or BMP."
    if data[4:8] == b"ftyp":  # ISO media: HEIC and AVIF photographs, videos
        hint = "HEIC, AVIF and video are not supported. " + hint
    raise ImageError("unsupported_image", "The bytes are not an image of a supported format.", hint)


def essentials(data: bytes, image_format: str, limits: Limits) -> tuple[bytes, bytes]:
    """The file, for JPEG and PNG without what makes no difference to the picture; and their EXIF block.

    Damaged, huge or merely odd metadata can then neither refuse a sound picture nor cost anything.
    """
    if image_format == "jpeg":
        return _jpeg_essentials(data)
    if image_format == "png":
        return _png_essentials(data)
    if image_format == "webp":
        _check_webp(data, limits)
    if image_format == "tiff":
        tags = _directory(data)
        if max(tags.get(tag, (0, 0))[0] for tag in (_STRIP_OFFSETS, _TILE_OFFSETS)) > MAX_STRIPS:
            raise damage("tiff", cut=False)
    return data, b""


def orientation(exif: bytes) -> int:
    """EXIF's 1 to 8; 1, upright, where the block does not say so or is garbage."""
    _, value = _directory(exif.removeprefix(b"Exif\0\0")).get(_ORIENTATION, (1, 1))
    return value if 1 <= value <= 8 else 1


def _jpeg_essentials(data: bytes) -> tuple[bytes, bytes]:
    """All from the first scan on; before it, only the segments that decoding needs."""
    view, position, exif = memoryview(data), 2, b""
    parts = [view[:2]]
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise damage("jpeg", cut=True)
        start, marker, position = found.start(), found[1][0], found.end()
        if marker == 0xDA:  # start of scan
            # 0xFFDA cannot occur within a scan, but does by chance in what phones append, such as videos.
            if data.count(b"\xff\xda", start) > 200 + len(data) // 32_768:
                raise damage("jpeg", cut=False)
            return b"".join([*parts, view[start:]]), exif
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:  # no payload
            continue
        num_bytes = (
            int.from_bytes(data[position : position + 2].ljust(2, b"\xff"), "big") - 2
        )  # of the payload
        position += 2 + num_bytes
        if num_bytes < 0 or position > len(data):
            raise damage("jpeg", cut=num_bytes >= 0)
        payload = data[start + 4 : position]
        if marker == 0xE1 and not exif and payload.startswith(b"Exif\0\0"):
            exif = payload
        tells_colours = (marker == 0xE0 and num_bytes >= 14) or (marker == 0xEE and num_bytes >= 12)
        if tells_colours or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # APP0 to APP15, comment
            parts.append(view[start:position])
    raise damage("jpeg", cut=False)


def _png_essentials(data: bytes) -> tuple[bytes, bytes]:
    """The chunks that decoding needs, checked: no text, no profiles, no further frames."""
    view, position, exif = memoryview(data), 8, b""
    parts = [view[:8]]
    for _ in range(MAX_PARTS):
        if position + 12 > len(data):
            raise damage("png", cut=True)
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if not kind.isalpha() or end > len(data):
            raise damage("png", cut=kind.isalpha())
        if kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        if kind[:1].isupper() or kind == b"tRNS":  # a capital means that no decoder may pass over it
            checksum = int.from_bytes(data[end - 4 : end], "big")
            if kind not in _PNG_CHUNKS or zlib.crc32(view[position + 4 : end - 4]) != checksum:
                raise damage("png", cut=False)
            parts.append(view[position:end])
        if kind == b"IEND":
            return b"".join(parts), exif
        position = end
    raise damage("png", cut=False)


def _check_webp(data: bytes, limits: Limits) -> None:
    """The end, and the size of the canvas, which Pillow allocates as soon as it opens the file."""
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise damage("webp", cut=True)
    if data[15:16] == b"X":  # extended
        width, height = 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    elif data[15:16] == b"L":  # lossless: 14 bits each
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    check_pixels(width, height, limits.max_pixels)


def _directory(data: bytes) -> dict[int, tuple[int, int]]:
    """First directory of a TIFF file or EXIF block: tag -> (count, first value if SHORT or LONG, else 0)."""
    order = ">" if data[:2] == b"MM" else "<"
    big = data[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (num_entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except (struct.error, OverflowError):
        return {}
    start += 8 if big else 2
    num_entries = min(num_entries, MAX_PARTS, (len(data) - start) // entry.size)
    tags: dict[int, tuple[int, int]] = {}
    for tag, kind, count, value in entry.iter_unpack(data[start : start + num_entries * entry.size]):
        size = {3: 2, 4: 4}.get(kind, 0)
        tags.setdefault(tag, (count, int.from_bytes(value[:size], "big" if order == ">" else "little")))
    return tags
