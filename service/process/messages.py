"""The messages between a worker and its supervisor: lines of JSON, each with a `kind`, over a socket pair.

    worker -> supervisor                    supervisor -> worker
    alive    every ALIVE_S
    ready    models: their description
    failed   error, why: it must end
    submit   id, action, name               change   id, action, name, asked: id of your submit, or null
    changed  id, why: null for success
                                            answer   id, why: of submit; null if all workers succeeded
    idle     no accepted request is left    close    alone: whether the other workers go on

fleet.py is the worker's end, member.py the supervisor's.
"""

from __future__ import annotations

import json
from typing import Any

ALIVE_S = 1.0


def line(kind: str, **members: Any) -> bytes:
    """Return a message as it is sent."""
    return json.dumps({"kind": kind, **members}).encode() + b"\n"
