"""Have glibc give back what is freed.

By itself it raises, after the first large block is freed, the size from which blocks come from the system and
go back to it, up to 32 MiB. From then on weights and photographs lie in its heaps, and the holes that a
swapped model leaves there stay: a server grew by 100 MiB in four minutes of load and eleven swaps
(docs/performance.md). Setting the size switches that off.
"""

from __future__ import annotations

import ctypes
import sys

# From <malloc.h>.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MMAP_BYTES = 2**20  # at 128 KiB a photograph of 500 x 375 took 4.6 ms to decode, not 2.9; at a megabyte 3.0
TRIM_BYTES = 8 * 2**20
NUM_ARENAS = 2  # by itself eight a core, and what one thread freed is of no use to another one's


def give_back() -> bool:
    """Whether it could be set: not where there is another C library."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = {M_MMAP_THRESHOLD: MMAP_BYTES, M_TRIM_THRESHOLD: TRIM_BYTES, M_ARENA_MAX: NUM_ARENAS}
    return all(mallopt(parameter, value) for parameter, value in settings.items())
