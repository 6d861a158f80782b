"""What a batcher takes, returns and raises; batcher.py says how it works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from numpy.typing import NDArray

from artifact.errors import Unavailable

Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class State(Enum):
    """What a batcher, and so the graph behind it, does with entries; batcher.py has the transitions."""

    SERVING = "takes entries and runs them"
    PAUSED = "refuses entries and starts no batch; those that wait go on waiting"
    CLOSING = "refuses entries and runs those that wait"
    CLOSED = "refuses entries, and starts no batch any more"


# What a batcher's `pause` and `close` make of a state; a state that is not listed stays.
PAUSE = {State.SERVING: State.PAUSED, State.CLOSING: State.CLOSED}
CLOSE = {State.SERVING: State.CLOSING, State.PAUSED: State.CLOSED}
RUNS = (State.SERVING, State.CLOSING)  # in these states batches start


class QueueFull(Unavailable):
    """The queue has no room for these rows; it should have some in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full for about {retry_after_s:.1f} s", retry_after_s)


class DeadlineMissed(Unavailable):
    """The rows cannot be, or were not, finished in time; the queue should be empty in `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        detail = f"the deadline cannot be met; the queue needs about {retry_after_s:.1f} s"
        super().__init__(detail, retry_after_s)


class Closed(Unavailable):
    """The batcher takes no more entries."""


class Paused(Unavailable):
    """No batch starts now: the engine is being rebuilt."""


class BatchFailed(Unavailable):
    """The engine failed on the batch of this entry, or hangs; its error is chained."""


@dataclass(frozen=True)
class Result:
    """One entry's row of every output, and how long the entry waited and ran."""

    outputs: dict[str, NDArray[Any]]
    queue_ms: float
    inference_ms: float
    batch_size: int  # entries in its batch, without padding


class BatchObserver(Protocol):
    """What a batcher reports about itself, from several threads."""

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
        batch_ms: batch size -> milliseconds of a batch while all instances run, for every warmed size.
    """

    run: Run
    batch_ms: Mapping[int, float]
    instances: int = 1
