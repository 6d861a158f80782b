"""Our own server with a clock around every stage of a request: what benchmarks/http_budget.py measures.

    python -m benchmarks.budget_server serve --model ...        # the arguments of `residuum`

The server is the real one; the functions of STAGES are replaced before it starts, so nothing is paid for in
production. Every line on standard input is answered by a line of JSON with the counts so far.
"""

from __future__ import annotations

import json
import runpy
import sys
import threading

from benchmarks.budget_clock import StageClock, StageGone

ACCEPT, APP, ADMISSION, HAND_OFFS = "accept and parse", "the app's path", "admission", "hand-offs"
DECODE, RESIZE, BATCH, ENGINE, ANSWER = "decode", "resize", "batch", "engine", "answer"

# The functions of each stage, where they are looked up. What they call counts for its own stage, if it has
# one. The functions of a pool's threads never return: they claim what nothing else on their threads does.
STAGES = {
    ACCEPT: (
        "service.http.protocol:GuardedProtocol.data_received",
        "service.http.routes.classify:read_images",
    ),
    APP: ("uvicorn.protocols.http.httptools_impl:RequestResponseCycle.run_asgi",),
    ADMISSION: (
        "service.http.middleware.shedding:Shedding.__call__",
        "service.runtime.decoding:DecodePool.seconds_for",
        "service.batching.batcher:Batcher.admit",
    ),
    HAND_OFFS: (
        "service.runtime.decoding:DecodePool._work_on_small",
        "service.runtime.decoding:DecodePool.preprocess",
        "service.runtime.execution:_Passage.run",
        "service.runtime.mailbox:Mailbox.post",
        "service.runtime.mailbox:Mailbox._deliver",
        "service.batching.entries:Batch.answer",
    ),
    DECODE: ("artifact.preprocess:open_image", "artifact.decode:_load_jpeg"),
    RESIZE: ("artifact.preprocess:_preprocess",),
    BATCH: (
        "service.batching.scheduler:Scheduler._work",
        "service.batching.batcher:Batcher._queue",
        "service.batching.entries:Batch._stack",
    ),
    ENGINE: ("service.batching.entries:Batch.run",),
    ANSWER: (
        "service.http.routes.classify:top_predictions",
        "service.http.routes.classify:to_json",
        "uvicorn.protocols.http.httptools_impl:RequestResponseCycle.send",
    ),
}


def make_clock() -> StageClock:
    """Return a clock that runs in every function of STAGES.

    Raises:
        StageGone: a function is not there any more.
    """
    clock = StageClock()
    for stage, places in STAGES.items():
        for place in places:
            clock.wrap(stage, place)
    clock.watch_collector()
    return clock


def _answer_lines(clock: StageClock, cost_ms: float) -> None:
    for _ in sys.stdin:
        print(json.dumps(clock.snapshot() | {"cost_ms": cost_ms}), flush=True)


def main() -> int:
    try:
        clock = make_clock()
    except StageGone as error:
        print(f"benchmarks.budget_server: {error}", file=sys.stderr)
        return 2
    threading.Thread(target=_answer_lines, args=(clock, clock.cost_ms()), daemon=True).start()
    runpy.run_module("residuum", run_name="__main__", alter_sys=True)  # it reads the arguments itself
    return 0


if __name__ == "__main__":
    sys.exit(main())
