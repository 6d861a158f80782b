"""glibc's allocator: its settings, and the return of freed memory to the system.

Blocks above a threshold come from the system and go back to it when freed. By default glibc raises that
threshold, up to 32 MiB, when a large block is freed. Weights and photographs then lie in glibc's heaps, where
the holes that a swapped model leaves are kept: a server grew by 100 MiB in four minutes of load and eleven
swaps (docs/performance.md). A threshold that is set stays as it is.

Smaller blocks lie in glibc's heaps in any case, and so do large ones where a hole is large enough. glibc
returns only the top of a heap by itself. `trim` returns the pages inside the holes.
"""

from __future__ import annotations

import ctypes
import sys

# From <malloc.h>.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

MMAP_BYTES = 2**20  # decoding a photograph of 500 x 375 took 2.9 ms by default, 4.6 at 128 KiB, 3.0 at 1 MiB
TRIM_BYTES = 8 * 2**20
NUM_ARENAS = 2  # the default is eight a core; an arena cannot use what was freed in another one


def give_back() -> bool:
    """Apply the settings; return False if the C library is not glibc."""
    if (libc := _glibc()) is None:
        return False
    settings = {M_MMAP_THRESHOLD: MMAP_BYTES, M_TRIM_THRESHOLD: TRIM_BYTES, M_ARENA_MAX: NUM_ARENAS}
    return all(libc.mallopt(parameter, value) for parameter, value in settings.items())


def trim() -> None:
    """Return all whole pages of freed memory to the system; do nothing if the C library is not glibc.

    It takes 2 to 10 ms, in which other threads may wait for an allocation.
    """
    if (libc := _glibc()) is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
