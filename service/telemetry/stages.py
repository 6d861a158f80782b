"""How long the stages of a request took; `Server-Timing` (W3C) says it to the client.

A route puts a `Stages` into `request.state.stages`; request_log.py does the rest.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stages:
    """Made when the last result is there: the stages followed one another, and ended now."""

    decode_ms: float
    queue_ms: float
    inference_ms: float
    batch_size: int | None = None  # images in the batch that ran; None: not known
    ended: float = field(default_factory=time.perf_counter)


def server_timing(stages: Stages, total_ms: float) -> str:
    """The value of the header, durations in milliseconds; the total is until the answer begins."""
    return (
        f"decode;dur={stages.decode_ms:.3f}, queue;dur={stages.queue_ms:.3f}, "
        f"inference;dur={stages.inference_ms:.3f}, total;dur={total_ms:.3f}"
    )
