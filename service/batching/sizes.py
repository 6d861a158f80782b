"""Which sizes batches have: those that are warmed, and the best of them for what waits."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

WORTH = 1.05  # a larger batch must be faster an image by that much


def sizes_for(batch_ms: Mapping[int, float], max_batch_ms: float = inf) -> list[int]:
    """Number of entries that wait -> the size to run, up to the largest that pays; index 0 is of no use.

    The size that takes least time an entry; of those about as good the smallest, which answers sooner. So a
    batch is only padded where a padded one is faster than two smaller ones.
    """
    sizes = [size for size in sorted(batch_ms) if size == 1 or batch_ms[size] <= max_batch_ms]
    table = [0]
    for num_entries in range(1, max(sizes) + 1):
        costs = {size: batch_ms[size] / min(size, num_entries) for size in sizes}
        good = WORTH * min(costs.values())
        table.append(next(size for size in sizes if costs[size] <= good))
    return table
