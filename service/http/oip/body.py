"""Read a request's body within its limit, and decompress it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.requests import Request

from service.errors import InvalidInference, TooManyBytes, UnsupportedMediaType
from service.http.body import chunks_of, holding_of
from service.http.oip.response import WINDOW_BITS
from service.runtime.load import Holding
from service.settings import Settings

STEP_BYTES = 2**18  # decompressed at a time; the event loop serves other requests in between


async def read_body(request: Request, settings: Settings, max_bytes: int) -> bytes:
    """Return the whole body; `max_bytes` limits it before and after decompression.

    Raises:
        TooManyBytes, RequestTimeout, Overloaded: the body is too long, too slow, or takes memory that the
            server does not have; the rest is not read.
        UnsupportedMediaType: the body is compressed, but not with gzip or deflate.
        InvalidInference: the compressed body is damaged.
        starlette.requests.ClientDisconnect: the client left while sending.
    """
    chunks = chunks_of(request, settings, max_bytes, "An inference request")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return b"".join([chunk async for chunk in chunks])
    if encoding not in WINDOW_BITS:
        raise UnsupportedMediaType(f"Content-Encoding {encoding} is not supported.", "Use gzip or deflate.")
    try:
        pieces = _inflated(chunks, WINDOW_BITS[encoding], max_bytes, holding_of(request))
        return b"".join([piece async for piece in pieces])
    except zlib.error as error:
        raise InvalidInference(f"The body cannot be decompressed as {encoding}: {error}.") from error


async def _inflated(
    chunks: AsyncIterator[bytes], window_bits: int, max_bytes: int, holding: Holding
) -> AsyncIterator[bytes]:
    """Yield what one compressed stream holds, piece by piece, and count it instead of what came.

    A second stream after the first is refused, because thousands of empty streams would keep the server busy.
    """
    inflater = zlib.decompressobj(window_bits)
    left = max_bytes
    async for received in chunks:
        chunk = received
        while chunk:
            if inflater.eof:
                raise InvalidInference("There are bytes after the end of the compressed body.")
            piece = inflater.decompress(chunk, STEP_BYTES)
            chunk = inflater.unconsumed_tail or inflater.unused_data
            left -= len(piece)
            if left < 0:
                raise TooManyBytes(
                    f"An inference request may have {max_bytes:,} bytes at most; decompressed, this has more."
                )
            holding.add(len(piece))
            yield piece
            await asyncio.sleep(0)
        holding.drop(len(received))
    if not inflater.eof:
        raise InvalidInference("The compressed body is cut off.")
