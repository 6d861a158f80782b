"""Read an image file before it is decoded: its format, whether it is complete, its size, its orientation.

Files come from strangers: every loop is bounded, every length is checked, a defect is an `ImageError`. This
module uses the standard library only; artifact/decode.py decodes with Pillow.
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

from artifact.errors import ResiduumError

# Bounds on loops in Python, and on work for each scan: without them a file of 20 MB takes 17 seconds (a JPEG
# of empty segments, a TIFF of five million strips) or 20 minutes (a JPEG of empty scans).
MAX_PARTS = 65_536  # JPEG segments before the first scan, PNG chunks, TIFF tags
MAX_STRIPS = 65_536
MAX_SCAN_PIXELS = 1_250_000_000  # of all scans of a JPEG; decoding them takes a second
MAX_SIDE = 1_000_000  # Pillow allocates memory for each row; no photograph is larger

_SIGNATURES = {
    "jpeg": re.compile(rb"\xff\xd8\xff"),
    "png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "webp": re.compile(rb"RIFF.{4}WEBPVP8[ LX]", re.DOTALL),
    "gif": re.compile(rb"GIF8[79]a"),
    "tiff": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "bmp": re.compile(rb"BM"),
}
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")  # skips fill bytes, and junk as libjpeg does
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those are tables, and reserved
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_STRIP_OFFSETS, _TILE_OFFSETS, _ORIENTATION = 273, 324, 274  # TIFF 6.0


class ImageError(ResiduumError):
    """The bytes are no usable image.

    `code` is one of empty_body, too_many_bytes, unsupported_image, truncated_image, corrupt_image,
    too_many_pixels; `detail` says what is wrong with this image, `hint` what its sender can do.
    """

    def __init__(self, code: str, detail: str, hint: str = "", **members: Any) -> None:
        super().__init__(detail, hint, **members)
        self.code = code


class ImageTooLong(ImageError):
    """The file has more bytes than are accepted; its code is too_many_bytes."""


@dataclass(frozen=True)
class Limits:
    """Limits checked before decoding."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000


def damage(image_format: str, *, cut: bool) -> ImageError:
    """Return the error for a file with a known signature that ends too early or cannot be decoded."""
    name = image_format.upper()
    if cut:
        return ImageError("truncated_image", f"The {name} ends too early.", "Send the whole file.")
    detail = f"The {name} cannot be decoded: it is damaged, or of a kind that is not supported."
    return ImageError("corrupt_image", detail, "Open it in an image editor and save it as JPEG or PNG.")


def check_pixels(width: int, height: int, limit: int) -> None:
    """Raise ImageError if an image has more pixels than `limit`, or a side longer than MAX_SIDE."""
    if width * height > limit or max(width, height) > MAX_SIDE:
        most = f"{limit:,}, and {MAX_SIDE:,} a side," if width * height <= limit else f"{limit:,}"
        detail = f"The image has {width:,} x {height:,} pixels; at most {most} are accepted."
        raise ImageError("too_many_pixels", detail, "Send a smaller copy: models see a few hundred a side.")


def sniff(data: bytes, limits: Limits) -> str:
    """Return the format: "jpeg", "png", "webp", "gif", "tiff" or "bmp"; raise ImageError for any other."""
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


def essentials(data: bytes, image_format: str) -> tuple[bytes, bytes]:
    """Return the file, and the EXIF block of a JPEG or PNG.

    JPEG and PNG are returned without parts that do not affect the pixels, so that damaged or huge metadata
    neither makes a good image fail nor costs time.
    """
    if image_format == "jpeg":
        file = read_jpeg(data)
        file.check_scans()
        return file.essentials(), file.exif
    if image_format == "png":
        return _png_essentials(data)
    if image_format == "tiff":
        tags = _directory(data)
        if max(tags.get(tag, (0, 0))[0] for tag in (_STRIP_OFFSETS, _TILE_OFFSETS)) > MAX_STRIPS:
            raise damage("tiff", cut=False)
    return data, b""


def orientation(exif: bytes) -> int:
    """Return EXIF's orientation, 1 to 8; 1, which is upright, if the block has none or is damaged."""
    _, value = _directory(exif.removeprefix(b"Exif\0\0")).get(_ORIENTATION, (1, 1))
    return value if 1 <= value <= 8 else 1


@dataclass(frozen=True)
class JpegFrame:
    """What the frame header of a JPEG says (ITU-T T.81, B.2.2)."""

    marker: int  # 0xC0 baseline, 0xC1 extended, 0xC2 progressive, and kinds that are rarer
    bits: int  # a sample
    width: int
    height: int
    num_components: int


@dataclass(frozen=True, eq=False)
class JpegFile:
    """A JPEG that was read up to its first scan."""

    data: bytes
    parts: tuple[memoryview, ...]  # the start of the file and the segments that decoding needs
    scan: int  # where the first scan starts
    exif: bytes
    frame: JpegFrame | None  # None: there is none before the scan, or it is damaged

    @property
    def one_scan(self) -> bool:
        """Whether the first scan has the whole picture, so that libjpeg refuses another one."""
        if self.frame is None or self.frame.marker not in (0xC0, 0xC1):  # progressive files have many
            return False
        return self.data[self.scan + 4 : self.scan + 5] == bytes([self.frame.num_components])

    def check_scans(self) -> None:
        """Raise ImageError if there are so many scans that decoding would take minutes."""
        # 0xFFDA cannot occur within a scan, but can in data that phones append, such as videos.
        num_scans = self.data.count(b"\xff\xda", self.scan)
        num_pixels = self.frame.width * self.frame.height if self.frame else 0
        if num_scans > 200 + len(self.data) // 32_768 or num_scans * num_pixels > MAX_SCAN_PIXELS:
            raise damage("jpeg", cut=False)

    def essentials(self) -> bytes:
        """Return the file without the segments that decoding does not need."""
        return b"".join([*self.parts, memoryview(self.data)[self.scan :]])


def read_jpeg(data: bytes) -> JpegFile:
    """Read the segments before the first scan; raise ImageError if they are damaged or cut."""
    view, position, exif, frame = memoryview(data), 2, b"", None
    parts = [view[:2]]
    for _ in range(MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise damage("jpeg", cut=True)
        start, marker, position = found.start(), found[1][0], found.end()
        if marker == 0xDA:  # start of scan
            return JpegFile(data, tuple(parts), start, exif, frame)
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:  # no payload
            continue
        num_bytes = (
            int.from_bytes(data[position : position + 2].ljust(2, b"\xff"), "big") - 2
        )  # of the payload
        position += 2 + num_bytes
        if num_bytes < 0 or position > len(data):
            raise damage("jpeg", cut=num_bytes >= 0)
        if marker == 0xE1 and not exif and data.startswith(b"Exif\0\0", start + 4, position):
            exif = data[start + 4 : position]
        if marker in _JPEG_FRAMES and num_bytes >= 6:
            bits, height, width, num_components = struct.unpack_from(">BHHB", data, start + 4)
            frame = JpegFrame(marker, bits, width, height, num_components)
        tells_colours = (marker == 0xE0 and num_bytes >= 14) or (marker == 0xEE and num_bytes >= 12)
        if tells_colours or not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # APP0 to APP15, comment
            parts.append(view[start:position])
    raise damage("jpeg", cut=False)


def _png_essentials(data: bytes) -> tuple[bytes, bytes]:
    """Return the chunks that decoding needs, with their checksums checked, and the EXIF block."""
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
        if kind[:1].isupper() or kind == b"tRNS":  # critical: a decoder must not skip it
            checksum = int.from_bytes(data[end - 4 : end], "big")
            if kind not in _PNG_CHUNKS or zlib.crc32(view[position + 4 : end - 4]) != checksum:
                raise damage("png", cut=False)
            parts.append(view[position:end])
        if kind == b"IEND":
            return b"".join(parts), exif
        position = end
    raise damage("png", cut=False)


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of the canvas; raise ImageError if the file is cut."""
    if len(data) < 30 or int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise damage("webp", cut=True)
    if data[15:16] == b"X":  # extended
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[15:16] == b"L":  # lossless: 14 bits each
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height


def _directory(data: bytes) -> dict[int, tuple[int, int]]:
    """Return the first directory of a TIFF file or EXIF block, by tag: the count, and the first value.

    The value is 0 if its type is neither SHORT nor LONG.
    """
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
