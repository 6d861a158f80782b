"""How honest forecasts are: what admission expects is held against what became of it, and corrected."""

from __future__ import annotations

from service.batching.smoothing import follow_ratio

LEAST_S = 0.05  # shorter times say more about the scheduling of threads than about the queue
RANGE = (0.5, 10.0)
RESERVE = 1.2  # so that what is admitted is in time even if the cores slow down


class Forecast:
    """The ratio of the time that images really took to the time that was expected when they were admitted.

    The expectation adds up what was measured in parts: batches, decoding. The ratio holds everything else,
    such as cores that other processes took, and threads that wait for one another.
    """

    def __init__(self) -> None:
        self.ratio = 1.0

    def at_most_s(self, expected_s: float) -> float:
        """Return the seconds that admission reckons with."""
        return RESERVE * self.ratio * expected_s

    def note(self, expected_s: float, took_s: float, *, done: bool = True) -> None:
        """Learn from an image; of one that was given up, `took_s` says only that it would take longer."""
        if not (done or took_s > expected_s * self.ratio):
            return
        measured = took_s / expected_s
        if expected_s < LEAST_S:
            # This can only heal a ratio that is too high: under short deadlines nothing longer is admitted.
            measured = max(1.0, measured)
            if measured >= self.ratio:
                return
        least, most = RANGE
        self.ratio = min(most, max(least, follow_ratio(self.ratio, measured)))
