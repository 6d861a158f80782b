"""Read the image files of a request's body, within the limits.

A body is one image file (`curl -T cat.jpg`), or multipart/form-data with parts named `image`
(`curl -F image=@cat.jpg -F image=@dog.jpg`). A body that is too long or too slow is not read to its end. This
module knows HTTP bodies, and nothing of images: `artifact.preprocess` decides whether the bytes are an image.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from functools import partial

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from artifact.image_bytes import ImageError
from service.errors import (
    InvalidPart,
    MalformedMultipart,
    RequestTimeout,
    TooManyBytes,
    TooManyImages,
    UnsupportedMediaType,
)
from service.runtime.load import HeldBytes, Holding
from service.settings import Settings

PART = "image"
HOLDING = "residuum.holding"  # in a request's scope: the Holding that counts its body
HOW_TO_SEND = "Send the file itself (curl -T cat.jpg URL) or a form (curl -F image=@cat.jpg URL)."


def declared_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the length of the body that the head of a request declares; 0 if it declares none."""
    length = next((value for name, value in headers if name == b"content-length"), b"")
    if not length.isdigit():
        return 0
    return int(length) if len(length) < 20 else sys.maxsize


async def read_image(request: Request, settings: Settings) -> bytes:
    """Return the only image of a request; raise as `read_images`, and TooManyImages for more than one."""
    images = await read_images(request, settings)
    if len(images) > 1:
        raise TooManyImages(f"This call takes one image, not {len(images)}.")
    return images[0]


async def read_images(request: Request, settings: Settings) -> list[bytes]:
    """Return the image files of a request, in order; at least one.

    Raises:
        TooManyBytes, TooManyImages, InvalidPart, MalformedMultipart, UnsupportedMediaType, RequestTimeout:
            see errors.py.
        ImageError: the body is empty (`empty_body`).
        starlette.requests.ClientDisconnect: the client left while sending.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    media_type = content_type.decode("latin-1")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding {encoding} is not supported.", "Send the image as it is."
        )
    if media_type == "multipart/form-data":
        return await _read_parts(request, options.get(b"boundary"), settings)
    if media_type.startswith("image/") or media_type in ("", "application/octet-stream"):
        chunks = chunks_of(request, settings, settings.max_image_bytes, "An image")
        body = b"".join([chunk async for chunk in chunks])
        if not body:
            raise ImageError("empty_body", "The body is empty.", HOW_TO_SEND)
        return [body]
    raise UnsupportedMediaType(f"A body of Content-Type {media_type} is not supported.", HOW_TO_SEND)


async def chunks_of(request: Request, settings: Settings, max_bytes: int, what: str) -> AsyncIterator[bytes]:
    """Yield the chunks of a body as they come, all within `settings.body_timeout`; `what` names it in errors.

    Raises:
        TooManyBytes: the declared length, or the number of bytes received, is over `max_bytes`.
        RequestTimeout: the chunks come too slowly; the answer closes the connection.
        Overloaded: the bodies that wait take too much memory.
        starlette.requests.ClientDisconnect: the client left while sending.
    """
    holding = holding_of(request)
    declared = declared_bytes(request.headers.raw)
    num_bytes = declared if declared > max_bytes else 0
    deadline = asyncio.get_running_loop().time() + settings.body_timeout
    more = True
    while more and num_bytes <= max_bytes:
        try:
            async with asyncio.timeout_at(deadline) as limit:
                holding.stop = partial(end, limit)
                message = await request.receive()
        except TimeoutError as error:
            holding.check()
            raise RequestTimeout(
                f"The body took longer than {settings.body_timeout:g} seconds to come."
            ) from error
        finally:
            holding.stop = None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if chunk := message.get("body"):
            num_bytes += len(chunk)
            if num_bytes <= max_bytes:
                holding.add(len(chunk))
                yield chunk
    if num_bytes > max_bytes:
        raise TooManyBytes(f"{what} may have {max_bytes:,} bytes at most; this body has more.")
    holding.complete()


def end(limit: asyncio.Timeout) -> None:
    """Let a time limit pass now, if it has not passed."""
    if not limit.expired():
        limit.reschedule(0)


def holding_of(request: Request) -> Holding:
    """Return what counts the bytes of a request; without limits if the gate has not made one."""
    holding: Holding | None = request.scope.get(HOLDING)
    if holding is None:
        holding = request.scope[HOLDING] = HeldBytes().hold()
    return holding


async def _read_parts(request: Request, boundary: bytes | None, settings: Settings) -> list[bytes]:
    if not boundary:
        raise MalformedMultipart("The Content-Type multipart/form-data names no boundary.", HOW_TO_SEND)
    form = _Form(settings.max_images, settings.max_image_bytes)
    try:
        parser = MultipartParser(boundary, callbacks=form.callbacks())  # type: ignore[arg-type]
        async for chunk in chunks_of(request, settings, settings.max_request_bytes, "A multipart body"):
            parser.write(chunk)
    except FormParserError as error:
        raise MalformedMultipart(f"The multipart body cannot be read: {error}.", HOW_TO_SEND) from error
    if not form.complete:
        raise MalformedMultipart("The multipart body ends before its closing boundary.", HOW_TO_SEND)
    if not form.images:
        raise ImageError("empty_body", f"The multipart body has no part named {PART!r}.", HOW_TO_SEND)
    images = []
    while form.images:  # one copy at a time
        images.append(bytes(form.images.pop(0)))
    return images


class _Form:
    """Collect the image parts that a MultipartParser reports; raise at the first that is too much."""

    def __init__(self, max_images: int, max_image_bytes: int) -> None:
        self.images: list[bytearray] = []
        self.complete = False
        self._max_images = max_images
        self._max_image_bytes = max_image_bytes
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = ""

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin_part,
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._disposition = ""

    def _begin_header(self) -> None:
        self._header.clear()
        self._value.clear()

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value.decode("latin-1")

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != PART:
            raise InvalidPart(
                f"There is a part named {name!r}.", f"Name every part {PART!r}: curl -F {PART}=@cat.jpg URL."
            )
        if len(self.images) == self._max_images:
            raise TooManyImages(f"A request may have {self._max_images} images at most; this one has more.")
        self.images.append(bytearray())

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        image = self.images[-1]
        image.extend(data[start:end])
        if len(image) > self._max_image_bytes:
            index = len(self.images) - 1
            raise TooManyBytes(
                f"An image may have {self._max_image_bytes:,} bytes at most; image {index} has more.",
                image_index=index,
            )

    def _end(self) -> None:
        self.complete = True
