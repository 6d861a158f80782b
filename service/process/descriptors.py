"""Say in the log when the process has no file descriptors left, and when it has some again.

A process without descriptors takes no connections: depending on the event loop, they wait or are closed, and
nobody is told. This module knows no connections.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time

logger = logging.getLogger("residuum")

SAY_AGAIN_S = 60.0  # the shortest time between two complaints
EXHAUSTED = (errno.EMFILE, errno.ENFILE)  # of the process, of the system


class DescriptorWatch:
    """Looks whether a file can be opened, whenever it is told to."""

    def __init__(self) -> None:
        self._said_at = -math.inf
        self._complained = False  # and has not taken it back yet

    def look(self) -> None:
        """Log what changed; during a shortage, and if it comes and goes, once in SAY_AGAIN_S only."""
        if not _is_exhausted():
            if self._complained:
                self._complained = False
                logger.warning("There are file descriptors again: new connections are taken.")
        elif time.monotonic() >= self._said_at + SAY_AGAIN_S:
            self._said_at = time.monotonic()
            self._complained = True
            logger.error(
                "No file descriptors are left: new connections wait or are closed, and open ones are served. "
                "Raise the limit (ulimit -n, LimitNOFILE=, --ulimit nofile=), or let fewer clients connect."
            )


def _is_exhausted() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in EXHAUSTED
    return False
