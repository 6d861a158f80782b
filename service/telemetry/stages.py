"""The durations of a request's stages, and the header `Server-Timing` (W3C) that tells them to the client.

A route puts a `Stages` into `request.state.stages`, which the middleware that logs requests reads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stages:
    """Durations of the stages, which follow one another. It is made when the last one ends."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    batch_size: int | None = None  # images in the batch; None if it is not known
    ended: float = field(default_factory=time.perf_counter)


def server_timing(stages: Stages, total_ms: float) -> str:
    """Return the value of the header, in milliseconds; the total ends when the answer begins."""
    return (
        f"decode;dur={stages.decode_ms:.3f}, queue;dur={stages.queue_ms:.3f}, "
        f"inference;dur={stages.inference_ms:.3f}, total;dur={total_ms:.3f}"
    )
