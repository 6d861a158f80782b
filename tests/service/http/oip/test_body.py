"""A compressed body counts with the bytes that it has when it is decompressed."""

from __future__ import annotations

import asyncio
import zlib

import pytest
from starlette.requests import Request
from starlette.types import Message

from service.errors import Overloaded
from service.http.body import HOLDING
from service.http.oip.body import read_body
from service.runtime.load import HeldBytes
from service.settings import Settings

SIZE = 300_000
BODY = zlib.compress(bytes(SIZE))


def read(held: HeldBytes, body: bytes = BODY, encoding: str = "deflate") -> bytes:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop()

    headers = [(b"content-encoding", encoding.encode()), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "headers": headers, HOLDING: held.hold()}
    return asyncio.run(read_body(Request(scope, receive), Settings(), 10 * SIZE))


@pytest.mark.parametrize(("body", "encoding"), [(BODY, "deflate"), (bytes(SIZE), "identity")])
def test_what_is_held_is_what_the_body_takes(body: bytes, encoding: str) -> None:
    held = HeldBytes(SIZE + len(BODY))
    assert read(held, body, encoding) == bytes(SIZE)
    assert held.num_bytes == SIZE


def test_a_body_that_grows_beyond_the_memory_is_refused() -> None:
    held = HeldBytes(SIZE)
    other = held.hold()
    other.add(len(BODY))
    other.complete()
    with pytest.raises(Overloaded):
        read(held)
