"""Detect growth, such as a leak, in samples of a long run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np


def judge(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return marks of a series of (progress, value) samples: start, quarter, half, end, peak, growth, slope.

    Each mark is the median of the samples near it. `growth` is the difference between the medians of the
    second and the last quarter: the first quarter is left out because pools and caches fill in it, and a
    median ignores memory that is held for a moment. `slope` is the slope of the least-squares line after the
    first quarter, per 1000 units of progress.
    """
    done = np.array([far for far, _ in samples], float)
    values = np.array([value for _, value in samples], float)
    quarter = np.minimum(4 * done / (done[-1] or 1), 3).astype(int)
    later = quarter > 0
    around = max(1, len(values) // 20)

    def at(index: int) -> float:
        return float(statistics.median(values[max(0, index - around) : index + around + 1]))

    def median(which: int) -> float:
        return float(np.median(values[quarter == which])) if which in quarter else float(values[-1])

    slope = np.polyfit(done[later], values[later], 1)[0] if len({*done[later]}) > 2 else 0.0
    return {
        "start": float(values[0]),
        "quarter": at(int(np.argmax(later))),
        "half": at(int(np.argmax(done >= done[-1] / 2))),
        "end": at(len(values) - 1),
        "peak": float(values.max()),
        "growth": median(3) - median(1),
        "slope": 1000 * float(slope),
    }
