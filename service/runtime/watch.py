"""Artifacts that appear or change below a directory, found by watchfiles.

An artifact is reported when its manifest, or a file beside the manifest, has changed and nothing more has
changed for a moment. It may be incomplete: loading it finds out. Names that begin with a dot are ignored, so
that an artifact can be written under such a name and then renamed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from watchfiles import Change, awatch

from artifact.store import artifacts_in

logger = logging.getLogger("residuum")


async def changed_artifacts(directory: Path) -> AsyncIterator[Path]:
    """Yield the directories of artifacts that appear or change, until cancelled.

    All that are there come first: some may have appeared after an earlier look and before the watch began.
    """
    root = directory.resolve()
    first = True
    try:
        async for changes in awatch(
            root, watch_filter=None, yield_on_timeout=True, ignore_permission_denied=True
        ):
            if not root.is_dir():
                raise FileNotFoundError("it is gone")
            names = _names(changes, root)
            for found in artifacts_in(directory) if first or names else []:
                if first or found.name in names:
                    yield found
            first = False
    except (OSError, RuntimeError) as error:
        logger.error("%s is watched no more: %s", directory, error)


def _names(changes: Iterable[tuple[Change, str]], root: Path) -> set[str]:
    """Return the names of the root's direct entries in which something has changed."""
    paths = (Path(path) for _, path in changes)
    return {path.relative_to(root).parts[0] for path in paths if path != root}
