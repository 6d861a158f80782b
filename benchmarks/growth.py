"""Does something grow that should not? Samples -> marks, and growth and slope after the first quarter."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np


def judge(samples: Sequence[tuple[float, float]]) -> dict[str, float]:
    """(how far, value) in order -> the value at four moments, each a median of its neighbours.

    After a quarter of the way everything that is kept for good should be there. `growth` is from the median
    of the second quarter to that of the last, for what is held for a while comes and goes; `slope` is that of
    the best line through all after the first quarter, for 1000 units of the way.
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
