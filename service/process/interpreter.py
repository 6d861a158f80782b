"""The interpreter's lock and garbage collector, as a server with threads and many objects needs them."""

from __future__ import annotations

import gc
import sys

# How long a thread keeps the interpreter's lock while others want it. Decoders need the lock for moments:
# at Python's 5 ms, a busy event loop makes them wait for longer than they decode.
SWITCH_S = 0.0005
# New objects before the youngest generation is collected (Python: 700), and how many collections of a
# generation come before one of the next. A request leaves no cycles behind, so few are found at any rate.
THRESHOLDS = (10_000, 20, 50)


def share_lock() -> None:
    """Let other threads have the interpreter's lock soon."""
    sys.setswitchinterval(SWITCH_S)


def collect_rarely() -> None:
    """Leave everything that exists now out of all later collections, and collect less often.

    Call it when the models are loaded. Otherwise each full collection walks through all modules and models,
    and stops every thread for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
