"""Choose the best warmed-up batch size for the entries that wait."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

WORTH = 1.05  # a larger batch must be faster an image by this factor


def sizes_for(batch_ms: Mapping[int, float], max_batch_ms: float = inf) -> list[int]:
    """Return a lookup table: `table[n]` is the batch size to run when `n` entries wait. `table[0]` is unused.

    It is the size that takes least time an entry; of sizes about as good it is the smallest, which answers
    sooner. A batch is therefore padded only where it is faster than two smaller ones. The table ends at the
    largest size that is worth it.

    Args:
        batch_ms: batch size -> milliseconds of a batch.
        max_batch_ms: sizes that take longer are left out, but for size 1.
    """
    sizes = [size for size in sorted(batch_ms) if size == 1 or batch_ms[size] <= max_batch_ms]
    table = [0]
    for num_entries in range(1, max(sizes) + 1):
        costs = {size: batch_ms[size] / min(size, num_entries) for size in sizes}
        good = WORTH * min(costs.values())
        table.append(next(size for size in sizes if costs[size] <= good))
    return table
