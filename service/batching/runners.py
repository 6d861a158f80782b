"""How long a graph's batches take: the times measured at warm-up, corrected for the current pace."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from service.batching.sizes import sizes_for
from service.batching.smoothing import follow_ratio
from service.batching.types import Runner

# What an entry may wait for others that are being decoded: batches of one, but at most so many full batches.
COMPANY, MOST_COMPANY = 8, 2
# The room that a batch leaves to its first entry's deadline: times its own seconds, and for waking a thread.
HASTE, WAKING_S = 2.0, 0.02


class Runners:
    """The runners of a batcher, and estimates from what they measured.

    Args:
        runners: the last one runs batches at load. The first one, if there are two, takes the whole device
            for an entry that comes alone.
        max_batch_ms: larger batches than that are not formed, unless the smallest takes longer too.
    """

    def __init__(self, runners: Sequence[Runner], max_batch_ms: float) -> None:
        self.all = tuple(runners)
        self.alone = runners[0]
        self.at_load = runners[-1]
        self.size_for = sizes_for(self.at_load.batch_ms, max_batch_ms)
        self.largest_batch = self.size_for[-1]
        # How much longer batches take than when they were warmed. One number for all sizes and runners: what
        # runs tells the pace of what does not, so no size counts as slow because of one old hiccup.
        self.pace = 1.0
        self.hang = False  # a batch was abandoned in one of them, and may never come back

    @property
    def batch_ms(self) -> dict[int, float]:
        """Milliseconds at load by batch size, corrected for the current pace."""
        return {size: self.ms(self.at_load, size) for size in self.at_load.batch_ms}

    def ms(self, runner: Runner, size: int) -> float:
        """Return the milliseconds of a batch, corrected for the current pace."""
        return runner.batch_ms[size] * self.pace

    def least_seconds(self, runner: Runner) -> float:
        """Return the seconds of the smallest batch, at most as measured at warm-up."""
        return runner.batch_ms[1] * min(1.0, self.pace) / 1000

    def seconds_an_image(self) -> float:
        """Return the seconds an image takes at load, when all instances run full batches."""
        size = self.largest_batch
        return self.ms(self.at_load, size) / (1000 * size * self.at_load.instances)

    def seconds_for(self, num_rows: int, most_pace: float = inf) -> float:
        """Return the seconds that rows take at load when nothing is ahead of them.

        A pace above `most_pace` counts as that one.
        """
        size = self.size_for[min(num_rows, self.largest_batch)]
        seconds = max(self.ms(self.at_load, size) / 1000, num_rows * self.seconds_an_image())
        return seconds * min(1.0, most_pace / self.pace)

    def seconds_in_haste(self, num_rows: int) -> float:
        """Return how long before its first entry's deadline a batch begins, although more may join."""
        return HASTE * self.seconds_for(num_rows) + WAKING_S

    def company_s(self, num_expected: int) -> float:
        """Return how long an entry may wait for others; so many are decoded or wait for it.

        The more there are, the longer all of them wait at any rate, and the less this adds.
        """
        alone, full = self.ms(self.at_load, 1), self.ms(self.at_load, self.largest_batch)
        return min(max(COMPANY, num_expected / 2) * alone, MOST_COMPANY * full) / 1000

    def note(self, runner: Runner, size: int, seconds: float) -> None:
        """Update the pace with a batch that took `seconds`."""
        self.pace = follow_ratio(self.pace, seconds * 1000 / runner.batch_ms[size])
