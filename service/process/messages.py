"""The messages between a worker and its supervisor: frames of JSON, each with a `kind`, over a socket pair.

    worker -> supervisor                        supervisor -> worker
    alive    every ALIVE_S
    ready    models: their description;
             loaded: a change for each
    failed   error, why: it must end
    found    a change that --watch has made
    submit   id, a change                       change   id, asked: id of your submit, or null; a change
    changed  id, why: null for success;
             the change that was made
                                                answer   id, why: of submit; null if all workers succeeded
    idle     no accepted request is left        close    alone: whether the other workers go on

A change is `name`, `directory` and `fingerprint`, see `Change`. A frame is its length, four bytes in network
order, and so many bytes of JSON. fleet.py is the worker's end, member.py the supervisor's.
"""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

ALIVE_S = 1.0
MAX_BYTES = 2**20  # of a frame
MAX_WHY = 4000  # characters of a reason; an engine may say more

LENGTH = struct.Struct("!I")


class BadMessage(Exception):
    """What arrived is no message; nothing that comes after it can be understood."""


def frame(kind: str, **members: Any) -> bytes:
    """Return a message as it is sent."""
    data = json.dumps({"kind": kind, **members}).encode()
    return LENGTH.pack(len(data)) + data


async def receive(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """Return the next message, or None if the other end is closed, perhaps in the middle of a message.

    Raises:
        BadMessage: it is too long, or no JSON object with a kind.
    """
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if length > MAX_BYTES:
            raise BadMessage(f"{length} bytes, which is more than {MAX_BYTES}")
        data = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"no JSON: {error}") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise BadMessage(f"no object with a kind: {data[:100]!r}")
    return message
