"""Hostile requests to /classify and /introspect: files, and multipart forms with all kinds of defects."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from benchmarks.hostile.bombs import bomb
from benchmarks.hostile.images import mutated, sound_images
from benchmarks.hostile.request import HostileRequest, some_delivery

PATHS = ("/classify",) * 8 + ("/introspect?maps=none", "/introspect")
QUERIES = (
    "top_k=0", "top_k=-1", "top_k=1e3", "top_k=" + "9" * 5000, "timeout_ms=0", "timeout_ms=1", "model=../..",
    "model=%00", "model=" + "a" * 3000, "top_k=1&top_k=2", "no_such=1", "%ff=%fe", "&&&==", "a[]=1",
    "gates=nan", "gates=1e309", "alpha=inf", "blocks=stage9", "target=%F0%9F%90%88", "maps=f32&scale=stage",
)  # fmt: skip
CONTENT_TYPES = (
    "image/jpeg", "image/png", "application/octet-stream", "image/*", "IMAGE/JPEG; charset=utf-8",
    "text/html", "application/json", "application/x-www-form-urlencoded", "image/jpeg;;;=", ";", "\xff\xfe",
    "a" * 4000,
    "multipart/form-data", "multipart/mixed; boundary=a", "multipart/form-data; boundary=",
    'multipart/form-data; boundary=""', "multipart/form-data; boundary=" + "b" * 300,
    "multipart/form-data; boundary=a\tb",
)  # fmt: skip
ENCODINGS = ("gzip", "br", "identity", "deflate, gzip", "", "\xff")
EDGE = "multipart/form-data; boundary=edge"
PART = b'Content-Disposition: form-data; name="image"; filename="a"\r\n'

Form = Callable[[random.Random, bytes], bytes]


@cache
def corpus() -> list[bytes]:
    return sound_images()


def image_request(chance: random.Random) -> HostileRequest:
    what, body = bomb(chance, corpus()) if chance.random() < 0.04 else mutated(chance, corpus())
    path, headers, kind = chance.choice(PATHS), {}, chance.random()
    if kind < 0.15:
        oddity = chance.choice(FORMS)
        what, body, headers = f"form {oddity.__name__}", oddity(chance, body), {"Content-Type": EDGE}
    elif kind < 0.8:
        headers = {"Content-Type": "application/octet-stream"}
    elif kind < 0.95:
        headers = {"Content-Type": chance.choice(CONTENT_TYPES)}
    if chance.random() < 0.01:
        headers["Content-Encoding"] = chance.choice(ENCODINGS)
    if chance.random() < 0.02:
        path = path.partition("?")[0] + "?" + chance.choice(QUERIES)
    return HostileRequest(what, path, body, headers, some_delivery(chance))


def sound(_: random.Random, body: bytes) -> bytes:
    return _form(PART, body)


def several(chance: random.Random, body: bytes) -> bytes:
    """Return a form of several images: within the limit, at it, and one above it."""
    return _part(PART, body) * chance.choice((2, 3, 32, 33)) + b"--edge--\r\n"


def unfinished(chance: random.Random, body: bytes) -> bytes:
    whole = _form(PART, body)
    return whole[: chance.randrange(len(whole))]


def other_name(chance: random.Random, body: bytes) -> bytes:
    names = (b'"file"', b"image", b'"\xff\xfe"', b'"image', b'"ima\\"ge"', b'""', b'"' + b"i" * 5000 + b'"')
    return _form(b"Content-Disposition: form-data; name=" + chance.choice(names) + b"\r\n", body)


def odd_headers(chance: random.Random, body: bytes) -> bytes:
    head = chance.choice(
        (
            b"",
            b"\r\n",
            PART * 2,
            PART * 3000,
            b"X: " + b"x" * 100_000 + b"\r\n" + PART,
            b"Content-Disposition\r\n",
            b"Content-Disposition:\r\n",
            PART.replace(b"\r\n", b"\n"),
            PART.replace(b"; ", b";\r\n "),
            b"Content-Transfer-Encoding: base64\r\n" + PART,
            b"Content-Length: 999999999\r\n" + PART,
            b"\0: \0\r\n" + PART,
        )
    )
    return _form(head, body)


def odd_boundaries(chance: random.Random, body: bytes) -> bytes:
    whole = _form(PART, body)
    return chance.choice(
        (
            whole.replace(b"--edge", b"--edgf"),
            whole.replace(b"--edge\r\n", b"--edge  \r\n"),
            whole.replace(b"\r\n", b"\n"),
            b"preamble\r\n" + whole,
            whole + b"epilogue" * 100,
            whole + whole,
            b"--edge--\r\n" + whole,
            b"--edge\r\n" * 20_000 + whole,
            b"\r\n--edg" * 20_000 + whole,
            b"--edge--\r\n",
            b"",
        )
    )


def damaged(chance: random.Random, body: bytes) -> bytes:
    """Return a form with some flipped bits in its first 90 bytes."""
    whole = bytearray(_form(PART, body))
    for _ in range(chance.choice((1, 2, 8))):
        whole[chance.randrange(min(len(whole), 90))] ^= 1 << chance.randrange(8)
    return bytes(whole)


FORMS: tuple[Form, ...] = (
    sound,
    sound,
    several,
    unfinished,
    other_name,
    odd_headers,
    odd_boundaries,
    damaged,
)


def _part(head: bytes, body: bytes) -> bytes:
    return b"--edge\r\n" + head + b"\r\n" + body + b"\r\n"


def _form(head: bytes, body: bytes) -> bytes:
    return _part(head, body) + b"--edge--\r\n"
