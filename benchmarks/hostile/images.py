"""Small valid images in every format and most of its variants, and mutations that damage them."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from benchmarks.hostile.request import NUMBERS, near_the_head

Mutation = Callable[[random.Random, bytearray, bytes], bytes]  # the second file lends parts

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if "append_images" in options:  # copies, because saving leaves settings of one format on an image
        options["append_images"] = [frame.copy() for frame in options["append_images"]]
    image.copy().save(buffer, image_format, **options)
    return buffer.getvalue()


def sound_images() -> list[bytes]:
    """Return the valid images; they are small, so that decoding them is cheap."""
    photo = Image.effect_mandelbrot((40, 30), (-2, -1.2, 1, 1.2), 50).convert("RGB")
    grey, palette, deep = photo.convert("L"), photo.quantize(16), _grey_16(photo)
    alpha = photo.convert("RGBA")
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    second = [photo.transpose(Image.Transpose.ROTATE_180)]
    tiffs = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")
    return [
        encode(photo, "JPEG", exif=exif, comment=b"hello"),
        encode(photo, "JPEG", progressive=True, optimize=True),
        encode(photo.convert("CMYK"), "JPEG"),
        encode(grey, "JPEG", restart_marker_rows=1),
        encode(photo, "MPO", save_all=True, append_images=second),
        encode(photo, "PNG", exif=exif),
        encode(alpha, "PNG"),
        encode(palette, "PNG", bits=4, transparency=3),
        encode(deep, "PNG"),
        encode(grey.convert("1"), "PNG"),
        encode(photo, "PNG", save_all=True, append_images=second),
        encode(photo, "WEBP"),
        encode(alpha, "WEBP", lossless=True, exif=exif),
        encode(photo, "WEBP", save_all=True, append_images=second),
        encode(palette, "GIF", transparency=3, comment=b"hello"),
        encode(photo, "GIF", save_all=True, append_images=second, interlace=1),
        *(encode(photo, "TIFF", compression=kind) for kind in tiffs),
        encode(grey.convert("1"), "TIFF", compression="group4"),
        encode(deep, "TIFF", exif=exif),
        encode(grey.convert("F"), "TIFF"),
        encode(alpha, "TIFF", save_all=True, append_images=second, compression="tiff_lzw"),
        encode(photo.convert("CMYK"), "TIFF", big_tiff=True),
        encode(photo, "BMP"),
        encode(palette, "BMP"),
    ]


def _grey_16(photo: Image.Image) -> Image.Image:
    return photo.convert("I").point(lambda value: value * 257).convert("I;16")


def mutated(chance: random.Random, corpus: list[bytes]) -> tuple[str, bytes]:
    """Return a mutation's name and its result; half of the PNGs get valid checksums again."""
    mutation = chance.choice(MUTATIONS)
    data = mutation(chance, bytearray(chance.choice(corpus)), chance.choice(corpus))
    if data and chance.random() < 0.15:  # a second one
        data = chance.choice(MUTATIONS)(chance, bytearray(data), chance.choice(corpus))
    if data.startswith(PNG_SIGNATURE) and chance.random() < 0.5:
        data = with_right_checksums(data)
    return mutation.__name__, data


def flip_bits(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    for _flip in range(chance.choice((1, 1, 2, 4, 16, 64))):
        data[near_the_head(chance, len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def set_numbers(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    for _number in range(chance.choice((1, 1, 2, 4))):
        size, where = chance.choice((1, 2, 4)), near_the_head(chance, len(data))
        value = chance.choice(NUMBERS) & (256**size - 1)
        data[where : where + size] = value.to_bytes(size, chance.choice(("big", "little")))
    return bytes(data)


def truncate(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def header_only(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    return bytes(data[: chance.randrange(1, 64)]) + chance.randbytes(chance.choice((0, 1, 20, 500)))


def splice(chance: random.Random, data: bytearray, other: bytes) -> bytes:
    return bytes(data[: chance.randrange(len(data))]) + other[chance.randrange(len(other)) :]


def swap_signature(chance: random.Random, data: bytearray, other: bytes) -> bytes:
    size = chance.choice((2, 3, 4, 8, 16, 30))
    return other[:size] + bytes(data[size:])


def repeat_part(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    start = chance.randrange(len(data))
    end = min(len(data), start + chance.choice((1, 4, 12, 100, 1000)))
    return bytes(data[:end] + data[start:end] * chance.choice((1, 2, 30)) + data[end:])


def drop_part(chance: random.Random, data: bytearray, _: bytes) -> bytes:
    start = near_the_head(chance, len(data))
    return bytes(data[:start] + data[start + chance.choice((1, 2, 4, 12, 100)) :])


def random_bytes(chance: random.Random, _data: bytearray, _: bytes) -> bytes:
    return chance.randbytes(chance.choice((0, 1, 3, 16, 300, 5000)))


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_bits, set_numbers, set_numbers, truncate, header_only,
    splice, swap_signature, repeat_part, drop_part, random_bytes,
)  # fmt: skip


def chunk(kind: bytes, payload: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def with_right_checksums(data: bytes) -> bytes:
    """Return a PNG with valid checksums in all of its complete chunks."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        parts.append(chunk(kind, data[position + 8 : end - 4]))
        position = end
    return b"".join([*parts, data[position:]])
