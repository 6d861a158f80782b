"""Entries and batches: what waits in a batcher's queue, and what of it runs together.

No row can reach the wrong caller or harm its batch: a future is claimed with `set_running_or_notify_cancel`
when its entry leaves the queue. Before that it can be cancelled, and the entry is left out of every batch;
after that it cannot, so `set_result` never meets a cancelled future.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.preprocess import Row
from service.batching.runners import Runners
from service.batching.types import BatchFailed, Result, Runner


@dataclass(eq=False)
class Entry:
    """One row for the graph, waiting, running or done. A probe has a `runner`, which runs it in its own
    batch.
    """

    row: Row
    deadline: float | None
    queued: float
    runner: Runner | None = None
    future: Future[Result] = field(default_factory=Future)


@dataclass(eq=False)
class Batch:
    """Entries that run together, padded to `size` rows, in `runner`, one of `runners`."""

    entries: list[Entry]
    size: int
    runner: Runner
    runners: Runners
    settled: bool = False  # the batch finished or was abandoned; later engine output is discarded

    @property
    def is_probe(self) -> bool:
        return self.entries[0].runner is not None

    def run(self) -> list[dict[str, NDArray[Any]]]:
        """Run the entries and return the row of each; raise whatever the engine raises."""
        outputs = self.runner.run(self._stack())
        return [{name: array[i] for name, array in outputs.items()} for i in range(len(self.entries))]

    def answer(
        self, rows: Sequence[dict[str, NDArray[Any]]], queue_s: Sequence[float], seconds: float
    ) -> None:
        """Give every entry its row; `queue_s` has the seconds that each waited, `seconds` is the run's."""
        for entry, row, waited_s in zip(self.entries, rows, queue_s, strict=True):
            entry.future.set_result(Result(row, waited_s * 1000, seconds * 1000, len(self.entries)))

    def fail(self, why: str, cause: Exception | None = None) -> None:
        """Give every entry an error."""
        for entry in self.entries:
            failure = BatchFailed(why)
            failure.__cause__ = cause
            entry.future.set_exception(failure)

    def _stack(self) -> dict[str, NDArray[Any]]:
        """Return arrays of `size` rows: those of the entries, then zeros."""
        stacked = {}
        for name, first in self.entries[0].row.items():
            array = stacked[name] = np.empty((self.size, *first.shape), first.dtype)
            for i, entry in enumerate(self.entries):
                array[i] = entry.row[name]
            array[len(self.entries) :] = 0
        return stacked


class Waiting(deque[Entry]):
    """The entries that wait, in the order in which they run; every method is called with a lock held."""

    def take(
        self, runner: Runner, most: int, now: float, soonest: float, late: Callable[[], Exception]
    ) -> list[Entry]:
        """Claim and remove the entries of the next batch.

        An entry whose client has left is removed and left out. So is one whose deadline is before `soonest`,
        when the batch may end; it gets `late()` as its error. The last entry runs until its deadline has
        passed although it may be late: times that one hiccup spoilt would otherwise never heal.

        Args:
            runner: what will run the batch; a probe runs alone, and only in its own runner.
            most: the size of the batch.
        """
        taken: list[Entry] = []
        while self and len(taken) < most:
            if self[0].runner not in (None, runner) or (taken and taken[0].runner is not None):
                break
            entry = self.popleft()
            if not entry.future.set_running_or_notify_cancel():
                continue
            if entry.deadline is not None and entry.deadline < (soonest if self or taken else now):
                entry.future.set_exception(late())
            else:
                taken.append(entry)
        return taken

    def take_all(self) -> list[Entry]:
        """Claim and remove every entry whose client has not left."""
        left = [entry for entry in self if entry.future.set_running_or_notify_cancel()]
        self.clear()
        return left

    def cancel_probes(self) -> None:
        for entry in [entry for entry in self if entry.runner is not None]:
            entry.future.cancel()
            self.remove(entry)

    def forget(self, future: Future[Result]) -> None:
        """Remove the entry of that future, if it waits."""
        for entry in self:
            if entry.future is future:
                self.remove(entry)
                return
