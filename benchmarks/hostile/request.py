"""One hostile request, and the numbers and positions that hostile things are made of."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

# Whole: as it should be sent. Chunked: in pieces of random size. Cut: the client leaves halfway. Overlong:
# more comes than Content-Length says, which is another request then, and not a good one.
Delivery = Literal["whole", "chunked", "cut", "overlong"]

# Edges of the integers that file formats use.
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class HostileRequest:
    """A POST; `what` names what is wrong with it, for the statistics."""

    what: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    delivery: Delivery = "whole"


def near_the_head(chance: random.Random, size: int) -> int:
    """A position; half of them in the first 64 bytes, where headers are."""
    return chance.randrange(min(size, 64) if chance.random() < 0.5 else size)


def some_delivery(chance: random.Random) -> Delivery:
    if chance.random() < 0.94:
        return "whole"
    return chance.choice(("chunked", "chunked", "cut", "overlong"))
