"""What is refused before it is decoded, and by which code; and metadata, which refuses nothing."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from artifact.image_bytes import MAX_PARTS, MAX_STRIPS
from artifact.preprocess import Limits
from tests.support.images import CASES, PHOTO, chunk, code_of, encode, pixels_of, png, tiff


@pytest.mark.parametrize(
    "body", [b"", b"x", b"<svg></svg>", b"\0\0\0\x18ftypheic", b"%PDF-1.7", b"P6 1 1 255 abc"]
)
def test_what_is_no_image(body: bytes) -> None:
    assert code_of(body) == ("unsupported_image" if body else "empty_body")


@pytest.mark.parametrize("name", [name for name in CASES if not name.endswith("several")])
def test_a_file_is_truncated_wherever_it_is_cut(name: str) -> None:
    data = CASES[name][0]
    for end in {*range(16, len(data) - 3, max(1, len(data) // 40)), len(data) - 3}:
        assert code_of(data[:end]) == "truncated_image", end


def test_damage_inside_is_corrupt() -> None:
    whole, webp = encode(PHOTO, "PNG"), encode(PHOTO, "WEBP")
    flipped = whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]
    holed = webp[:20] + bytes(len(webp) - 20)
    for data in (flipped, holed, b"\xff\xd8\xff\xe0\0\0" + bytes(50), b"BM" + bytes(60)):
        assert code_of(data) == "corrupt_image"


def webp_of(kind: bytes, payload: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I4s4sI", 12 + len(payload), b"WEBP", kind, len(payload)) + payload


SQUARE = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1}
RUN_LENGTH = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 0, 0, 1078, 40, 2500, 2500, 1, 8, 1, 8, 0, 0, 256, 0)
LARGE = {
    "gif frame": b"GIF89a"
    + bytes(7)
    + struct.pack("<c4HBB", b",", 0, 0, 9000, 9000, 0, 8),  # beyond its screen
    "png header": png(60_000, 60_000, 8, 2, b""),
    "png of one column": png(1, 2_000_000, 8, 0, b""),
    "webp canvas": webp_of(b"VP8X", bytes(4) + b"\xff" * 6),
    "webp lossless": webp_of(b"VP8L", b"/" + b"\xff" * 13),
    "tiff": tiff(SQUARE | {256: 60_000, 257: 60_000, 273: 300, 278: 60_000, 279: 4}, bytes(4)),
    "tiff tile": tiff(SQUARE | {322: 30_000, 323: 30_000, 324: 300, 325: 12}, zlib.compress(bytes(256))),
    "bmp run length": RUN_LENGTH + bytes(1024) + b"\0\1",
}


@pytest.mark.parametrize("name", LARGE)
def test_too_many_pixels_are_refused_before_decoding(name: str) -> None:
    assert code_of(LARGE[name]) == "too_many_pixels"


def test_limits() -> None:
    data = encode(PHOTO, "PNG")
    assert code_of(data, Limits(max_bytes=len(data), max_pixels=32 * 32)) == "ok"
    assert code_of(data, Limits(max_bytes=len(data) - 1)) == "too_many_bytes"
    assert code_of(data, Limits(max_pixels=32 * 32 - 1)) == "too_many_pixels"


def test_what_would_take_minutes_is_refused() -> None:
    jpeg, whole, gif = encode(PHOTO, "JPEG"), encode(PHOTO, "PNG"), encode(PHOTO.convert("L"), "GIF")
    strips = tiff(SQUARE | {259: 1, 273: 300}, bytes(4 * MAX_STRIPS + 4), {273: MAX_STRIPS + 1})
    for data in (
        jpeg[:2] + b"\xff\xe0\0\2" * (MAX_PARTS + 1) + jpeg[2:],
        jpeg[:-2] + b"\xff\xda\0\2" * 1000 + jpeg[-2:],
        whole[:33] + chunk(b"abCd", b"") * (MAX_PARTS + 1) + whole[33:],
        gif[:-1].replace(b",", b"!\xfe" + b"\1a" * 200_000 + b"\0,", 1),
        strips,
    ):
        assert code_of(data) == "corrupt_image"


GARBAGE = [
    b"",
    b"II",
    b"MM\0*\0\0\0\x08\xff\xff",
    b"II*\0\xff\xff\xff\xff",
    b"II+\0" + b"\xff" * 12,
    bytes(60_000),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_bad_metadata_does_not_refuse_a_sound_picture(garbage: bytes) -> None:
    jpeg, webp, whole = (encode(PHOTO, image_format) for image_format in ("JPEG", "WEBP", "PNG"))
    for marker, name in [(0xE1, b"Exif\0"), (0xE2, b"ICC_PROFILE"), (0xE2, b"MPF"), (0xED, b"Photoshop 3.0")]:
        payload = name + b"\0" + garbage
        segment = struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload
        assert np.array_equal(pixels_of(jpeg[:2] + segment + jpeg[2:]), pixels_of(jpeg))
    for kind in (b"eXIf", b"iCCP", b"acTL", b"tEXt", b"gAMA"):
        assert np.array_equal(pixels_of(whole[:33] + chunk(kind, garbage) + whole[33:]), pixels_of(whole))
    assert np.array_equal(pixels_of(encode(PHOTO, "WEBP", exif=b"Exif\0\0" + garbage)), pixels_of(webp))


def test_text_of_hundreds_of_megabytes_is_not_unpacked() -> None:
    whole, text = encode(PHOTO, "PNG"), chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(8_000_000)))
    assert np.array_equal(pixels_of(whole[:33] + text * 40 + whole[33:]), pixels_of(whole))
