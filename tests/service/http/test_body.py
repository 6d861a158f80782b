"""Bodies become image files, however they are cut into chunks, and never more than the limits allow."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from artifact.errors import ResiduumError
from artifact.image_bytes import ImageError
from service.errors import (
    InvalidPart,
    MalformedMultipart,
    TooManyBytes,
    TooManyImages,
    UnsupportedMediaType,
)
from service.http.body import read_image, read_images
from service.settings import Settings

SETTINGS = Settings(max_image_bytes=1000, max_request_bytes=3000, max_images=3)
FORM = "multipart/form-data; boundary=XyZ"


def request_of(chunks: list[bytes], content_type: str | None = None, **headers: str) -> Request:
    left = list(chunks)
    if content_type is not None:
        headers["content-type"] = content_type

    async def receive() -> Message:
        chunk = left.pop(0) if left else b""
        return {"type": "http.request", "body": chunk, "more_body": bool(left)}

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def read(chunks: list[bytes], content_type: str | None = None, **headers: str) -> list[bytes]:
    return asyncio.run(read_images(request_of(chunks, content_type, **headers), SETTINGS))


def form(*parts: bytes, name: str = "image", end: bytes = b"--XyZ--\r\n") -> bytes:
    head = f'--XyZ\r\nContent-Disposition: form-data; name="{name}"; filename="a.jpg"\r\n'.encode()
    return b"".join(head + b"Content-Type: image/jpeg\r\n\r\n" + part + b"\r\n" for part in parts) + end


@pytest.mark.parametrize(
    "content_type", [None, "", "image/jpeg", "IMAGE/PNG", "application/octet-stream; x=y"]
)
def test_a_raw_body_is_one_image(content_type: str | None) -> None:
    assert read([b"abc", b"", b"def"], content_type) == [b"abcdef"]


@given(
    parts=st.lists(st.binary(max_size=300).filter(lambda part: b"--XyZ" not in part), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_a_form_is_its_parts_however_it_is_cut(parts: list[bytes], seed: int) -> None:
    body = form(*parts)
    rng = random.Random(seed)
    cuts = sorted(rng.sample(range(1, len(body)), rng.randint(0, 8)))
    chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(chunks, FORM) == parts


@given(st.binary(max_size=400))
def test_no_form_body_is_an_unforeseen_error(noise: bytes) -> None:
    for body in (noise, b"--XyZ\r\n" + noise, form(noise, end=noise)):
        with contextlib.suppress(ResiduumError):
            read([body], FORM)


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (b"", None, ImageError),
        (b"", "image/jpeg", ImageError),
        (b"{}", "application/json", UnsupportedMediaType),
        (b"a=b", "application/x-www-form-urlencoded", UnsupportedMediaType),
        (b"abc", "text/plain", UnsupportedMediaType),
        (b"abc", "multipart/form-data", MalformedMultipart),
        (b"abc", "multipart/form-data; boundary=" + "x" * 1000, MalformedMultipart),
        (b"abc", FORM, MalformedMultipart),
        (form(b"abc", end=b""), FORM, MalformedMultipart),
        (b"--XyZ--\r\n", FORM, ImageError),
        (b"", FORM, MalformedMultipart),
        (form(b"abc", name="file"), FORM, InvalidPart),
        (form(b"abc", name="imagé"), FORM, InvalidPart),
        (b"--XyZ\r\nContent-Type: image/png\r\n\r\nabc\r\n--XyZ--\r\n", FORM, InvalidPart),
        (form(b"a", b"b", b"c", b"d"), FORM, TooManyImages),
        (form(b"a" * 1001), FORM, TooManyBytes),
        (b"a" * 1001, None, TooManyBytes),
    ],
)
def test_what_is_wrong_is_said(body: bytes, content_type: str | None, error: type[ResiduumError]) -> None:
    with pytest.raises(error):
        read([body], content_type)


def test_an_encoded_body_is_refused() -> None:
    with pytest.raises(UnsupportedMediaType, match="gzip"):
        read([b"abc"], content_encoding="gzip")


def test_a_part_that_is_too_large_is_named() -> None:
    with pytest.raises(TooManyBytes) as refused:
        read([form(b"a", b"b" * 1001)], FORM)
    assert refused.value.members == {"image_index": 1}


def test_what_is_declared_too_long_is_not_read_at_all() -> None:
    request = request_of([b"abc"], None, content_length="1001")
    with pytest.raises(TooManyBytes):
        asyncio.run(read_images(request, SETTINGS))
    assert asyncio.run(request.body()) == b"abc"


def test_what_grows_too_long_is_not_read_on() -> None:
    request = request_of([b"a" * 600, b"b" * 600, b"c" * 600])
    with pytest.raises(TooManyBytes):
        asyncio.run(read_images(request, SETTINGS))
    assert asyncio.run(request.receive())["body"] == b"c" * 600


def test_one_image_means_one() -> None:
    assert asyncio.run(read_image(request_of([b"abc"]), SETTINGS)) == b"abc"
    with pytest.raises(TooManyImages, match="takes one image, not 2"):
        asyncio.run(read_image(request_of([form(b"a", b"b")], FORM), SETTINGS))
