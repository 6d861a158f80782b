"""Room that a batcher keeps for rows which are still being made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock
from types import TracebackType

from artifact.preprocess import Row
from service.batching.entries import Entry
from service.batching.types import Closed, Result


class Admission:
    """Room for some rows in a batcher's queue, given back at the end of `with` unless they were submitted.

    Args:
        queue: puts entries into the queue.
        give_back: frees room that is not used.
        expected_s: after how many seconds the rows should be done, by what was measured.
    """

    def __init__(
        self,
        num_rows: int,
        deadline: float | None,
        queue: Callable[[Sequence[Entry]], None],
        give_back: Callable[[int], None],
        expected_s: float,
    ) -> None:
        self.expected_s = expected_s
        self._num_rows = num_rows
        self._deadline = deadline
        self._queue = queue
        self._give_back = give_back
        self._used = False
        self._lock = Lock()

    def submit(self, rows: Sequence[Row]) -> list[Future[Result]]:
        """Queue as many rows as were admitted; a thread other than the one that leaves `with` may do so.

        Raises:
            Closed: the batcher was closed meanwhile, or the room was given back.
        """
        assert len(rows) == self._num_rows
        if not self._take():
            raise Closed("the room for these rows was given back")
        now = time.monotonic()
        entries = [Entry(row, self._deadline, now) for row in rows]
        self._queue(entries)
        return [entry.future for entry in entries]

    def __enter__(self) -> Admission:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._take():
            self._give_back(self._num_rows)

    def _take(self) -> bool:
        """Return whether the room is still there; only the first caller gets it."""
        with self._lock:
            was_used, self._used = self._used, True
            return not was_used
