"""A closed loop for machines without wrk: every connection sends its next request after an answer.

    python -m benchmarks.closed_loop URL CONNECTIONS SECONDS CONTENT_TYPE BODY...

One process keeps one core busy at some thousands of requests a second, so `closed_loops` runs several. Print
`[[latency_s, status], ...]` of the answers that came within SECONDS; status 0 means no answer.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import uvloop

from benchmarks.load import ROOT, LoadFailed, Target, percentile
from benchmarks.open_loop import Connection, requests_of

GRACE_S = 30  # beyond the measurement, for the start of the processes and the last answers


def closed_loops(target: Target, connections: int, seconds: float, processes: int) -> dict[str, Any]:
    """Return requests a second with status 200, latencies and statuses over all processes.

    Raises:
        LoadFailed: a process failed.
    """
    each = max(1, connections // processes)
    command = [sys.executable, "-m", "benchmarks.closed_loop", target.url, str(each), str(seconds)]
    command += [target.content_type, *map(str, target.bodies)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    answers: list[tuple[float, int]] = []
    try:
        for process in started:
            out, err = process.communicate(timeout=seconds + GRACE_S)
            if process.returncode:
                raise LoadFailed(f"a closed loop ended with {process.returncode}:\n{err[-2000:]}")
            answers += [(latency, status) for latency, status in json.loads(out)]
    except subprocess.TimeoutExpired as error:
        raise LoadFailed("a closed loop did not end") from error
    finally:
        for process in started:
            process.kill()
            process.communicate()
    latencies_ms = sorted(1000 * latency for latency, status in answers if status == 200)
    return {
        "connections": each * processes,
        "requests_per_s": len(latencies_ms) / seconds,
        "p50_ms": percentile(latencies_ms, 50),
        "p99_ms": percentile(latencies_ms, 99),
        "statuses": {str(status): count for status, count in sorted(Counter(s for _, s in answers).items())},
    }


async def run(
    url: str, connections: int, seconds: float, content_type: str, files: list[str]
) -> list[tuple[float, int]]:
    """Return latency and status of every answer within `seconds`."""
    address, requests = requests_of(url, content_type, files)
    loop, idle = asyncio.get_running_loop(), list[Connection]()
    answers: list[tuple[float, int]] = []
    end = time.perf_counter() + seconds

    async def keep_asking(number: int) -> None:
        connection = None
        for turn in range(number, sys.maxsize):
            started, status = time.perf_counter(), 0
            if started >= end:
                return
            try:
                if connection not in idle:
                    _, connection = await loop.create_connection(
                        lambda: Connection(idle), address.hostname, address.port
                    )
                else:
                    idle.remove(connection)
                async with asyncio.timeout_at(loop.time() + end - started + 1):
                    status = await connection.send(requests[turn % len(requests)])
            except OSError:  # refused, reset, or TimeoutError
                await asyncio.sleep(0.01)
            done = time.perf_counter()
            if done < end:
                answers.append((done - started, status))

    async with asyncio.TaskGroup() as tasks:
        for number in range(connections):
            tasks.create_task(keep_asking(number))
    return answers


if __name__ == "__main__":
    print(
        json.dumps(
            uvloop.run(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5:]))
        )
    )
