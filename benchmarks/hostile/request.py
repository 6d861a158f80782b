"""A hostile request, and the numbers and positions that mutations use."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

# whole: as it should be sent. chunked: in pieces of random size. cut: the client leaves halfway.
# overlong: more bytes than Content-Length says; the server parses the rest as another, invalid request.
Delivery = Literal["whole", "chunked", "cut", "overlong"]

# Limits of the integer types that file formats use.
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class HostileRequest:
    """A POST request; `what` names its defect, for the statistics."""

    what: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    delivery: Delivery = "whole"


def near_the_head(chance: random.Random, size: int) -> int:
    """Return a random position; half of them are in the first 64 bytes, where headers are."""
    return chance.randrange(min(size, 64) if chance.random() < 0.5 else size)


def some_delivery(chance: random.Random) -> Delivery:
    if chance.random() < 0.94:
        return "whole"
    return chance.choice(("chunked", "chunked", "cut", "overlong"))
