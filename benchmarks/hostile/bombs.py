"""Small files that demand much: huge declared sizes, streams that inflate enormously, very many parts.

Some are within the server's limits: a picture of 49 megapixels in 6 kB is valid; the server must give back
the memory that it takes.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

from benchmarks.hostile.images import PNG_SIGNATURE, chunk

SIDES = (0, 1, 255, 5000, 7001, 16383, 16384, 65535, 65536, 1_000_001, 2**24 - 1, 2**31 - 1, 2**32 - 1)
ZEROS = 30_000_000  # bytes that a stream inflates to

Bomb = Callable[[random.Random, list[bytes]], bytes]


def bomb(chance: random.Random, corpus: list[bytes]) -> tuple[str, bytes]:
    """Return the name of a bomb, and the file."""
    make = chance.choices(BOMBS, WEIGHTS)[0]
    return make.__name__, make(chance, corpus)


@cache
def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def png(width: int, height: int, depth: int, colour: int, stream: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG; `stream` has the compressed rows, `extra` chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return PNG_SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def declared_size(chance: random.Random, corpus: list[bytes]) -> bytes:
    """Return a valid file whose header is changed to declare another size."""
    data, sides = bytearray(chance.choice(corpus)), (chance.choice(SIDES), chance.choice(SIDES))
    width, height = sides if chance.random() < 0.8 else (sides[0], sides[0])
    short = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    if data.startswith(PNG_SIGNATURE):
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif data.startswith(b"GIF"):
        data[6:10] = short
        if (at := data.find(b",\0\0\0\0")) > 0 and chance.random() < 0.5:  # the first frame
            data[at + 5 : at + 9] = short
    elif data.startswith(b"BM"):
        data[18:26] = struct.pack("<II", width, height)
    elif data.startswith(b"RIFF"):
        if data[15:16] == b"X":
            data[24:30] = (width & 0xFFFFFF).to_bytes(3, "little") + (height & 0xFFFFFF).to_bytes(3, "little")
        else:
            at = 21 if data[15:16] == b"L" else 26
            data[at : at + 4] = short
    elif data.startswith(b"\xff\xd8"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        data[at + 5 : at + 9] = short[3:1:-1] + short[1::-1]
    else:
        set_tags(data, {256: width, 257: height})
    return bytes(data)


def set_tags(data: bytearray, values: dict[int, int]) -> None:
    """Set tags in the first directory of a little-endian TIFF, where they exist."""
    if data[:4] != b"II*\0":
        return
    (start,) = struct.unpack_from("<I", data, 4)
    (num_tags,) = struct.unpack_from("<H", data, start)
    for at in range(start + 2, start + 2 + 12 * num_tags, 12):
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in values:
            struct.pack_into("<HHII", data, at, tag, 4, 1, values[tag])


def tiff_tag(chance: random.Random, corpus: list[bytes]) -> bytes:
    """Return a TIFF whose tags declare missing strips or tiles, or whose directory refers to itself."""
    data = bytearray(chance.choice([file for file in corpus if file.startswith(b"II*\0")]))
    tags = chance.sample((258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325), 2)
    set_tags(data, {tag: chance.choice(SIDES) for tag in tags})
    if chance.random() < 0.2:
        struct.pack_into("<I", data, 4, chance.choice((4, 8, len(data) - 6)))
    return bytes(data)


def png_stream(chance: random.Random, _: list[bytes]) -> bytes:
    """Return a PNG whose rows inflate to far more than its size needs."""
    side = chance.choice((1, 8, 300, 2000))
    return png(side, side, 8, chance.choice((0, 2, 6)), zeros(ZEROS))


def png_text(chance: random.Random, _: list[bytes]) -> bytes:
    """Return a PNG with texts or profiles that inflate to much."""
    kind = chance.choice((b"zTXt", b"iCCP", b"iTXt"))
    head = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    extra = chunk(kind, head + zeros(ZEROS)) * chance.choice((1, 5))
    return png(8, 8, 8, 0, zlib.compress(bytes(72)), extra)


def png_frames(chance: random.Random, _: list[bytes]) -> bytes:
    """Return a PNG with very many chunks, such as the frames of an animation."""
    kind = chance.choice((b"acTL", b"fcTL", b"fdAT", b"tEXt", b"IDAT", b"tRNS", b"PLTE"))
    extra = chunk(kind, chance.randbytes(chance.choice((0, 3, 26)))) * chance.choice((1000, 20_000, 70_000))
    return png(8, 8, 8, 0, zlib.compress(bytes(72)), extra)


def gif_parts(chance: random.Random, _: list[bytes]) -> bytes:
    """Return a GIF with very many frames, comments or sub-blocks."""
    part = chance.choice((b"!\xfe\x01a\0", b"!\xf9\4\0\0\0\0\0", b",\0\0\0\0\1\0\1\0\0\2\2D\1\0", b"\1a"))
    return b"GIF89a\x10\0\x10\0\0\0\0" + part * chance.choice((1000, 50_000, 300_000)) + b";"


def jpeg_parts(chance: random.Random, corpus: list[bytes]) -> bytes:
    """Return a JPEG with very many scans, comments or markers."""
    data = next(file for file in corpus if file.startswith(b"\xff\xd8"))
    part = chance.choice(
        (b"\xff\xfe\0\2", b"\xff\xe1\0\x08Exif\0\0", b"\xff\xd0", b"\xff", b"\xff\xda\0\x02")
    )
    return data[:2] + part * chance.choice((1000, 50_000, 200_000)) + data[2:]


def exif(chance: random.Random, _: list[bytes]) -> bytes:
    """Return a PNG whose EXIF block points outside of itself, to itself, or to very many entries."""
    count, kind = chance.choice((1, 0xFFFF, 0xFFFFFFFF)), chance.choice((1, 3, 4, 5, 12, 99))
    entries = struct.pack("<HHII", 0x112, kind, count, chance.choice(SIDES)) * chance.choice((1, 5000))
    block = b"II*\0" + struct.pack("<IH", chance.choice((8, 0, 4, 10_000)), len(entries) // 12) + entries
    return png(8, 8, 8, 0, zlib.compress(bytes(72)), chunk(b"eXIf", block))


def large_but_allowed(chance: random.Random, _: list[bytes]) -> bytes:
    """Return a PNG of 49 megapixels with one bit each, or of 9 megapixels in colour."""
    if chance.random() < 0.5:
        return png(7000, 7000, 1, 0, zeros(7000 * 876))
    return png(3000, 3000, 8, chance.choice((2, 6)), zeros(3000 * 12_001))


def bytes_too_many(chance: random.Random, corpus: list[bytes]) -> bytes:
    """Return a file larger than the server accepts."""
    return chance.choice(corpus) + bytes(20 * 2**20)


BOMBS: tuple[Bomb, ...] = (
    declared_size, tiff_tag, png_stream, png_text, png_frames, gif_parts, jpeg_parts, exif,
    large_but_allowed, bytes_too_many,
)  # fmt: skip
WEIGHTS = (400, 150, 30, 30, 20, 20, 30, 40, 4, 2)  # the last two each cost the server as much as 100 others
