"""What a batcher takes, gives and raises: rows in, results out, and why there are none. See batcher.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from artifact.errors import ResiduumError

Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class QueueFull(ResiduumError):
    """No room for these rows; there should be some in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full for about {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class DeadlineMissed(ResiduumError):
    """The rows cannot be, or were not, finished in time; the queue should be empty in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the deadline cannot be met; the queue needs about {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class Closed(ResiduumError):
    """The batcher takes no more entries."""


class Paused(ResiduumError):
    """No batches are started now: the engine is being built anew."""


class BatchFailed(ResiduumError):
    """The engine failed on the batch that this entry was in, or hangs; a cause is chained."""


@dataclass(frozen=True)
class Result:
    """One entry's row of every output, and how long it waited and ran."""

    outputs: dict[str, NDArray[Any]]
    queue_ms: float
    inference_ms: float
    batch_size: int  # entries that ran with it, itself included


class BatchObserver(Protocol):
    """What a batcher tells of itself, from several threads."""

    def queue_changed(self, num_waiting: int) -> None: ...

    def batch_done(
        self, num_entries: int, padded_size: int, queue_s: Sequence[float], inference_s: float
    ) -> None: ...

    def batch_failed(self, num_entries: int, inference_s: float) -> None: ...


@dataclass(frozen=True, eq=False)
class Runner:
    """One way to run a batch, `instances` times at once.

    Args:
        run: an engine's `run`: arrays with a batch axis in, arrays with a batch axis out.
        batch_ms: for every size that has been warmed, the milliseconds of a batch while all instances run.
    """

    run: Run
    batch_ms: Mapping[int, float]
    instances: int = 1
