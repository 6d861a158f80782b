"""Artifacts that appear or change below a directory, as they are found by watchfiles.

An artifact is reported when its manifest, or a file beside that, has changed and no more change has come for
a moment. Whether it is whole is not known here: loading it finds out. Names that begin with a dot are left
alone, so that whoever brings an artifact can write it under such a name, and rename it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from watchfiles import Change, awatch

from artifact.store import artifacts_in

logger = logging.getLogger("residuum")


async def changed_artifacts(directory: Path) -> AsyncIterator[Path]:
    """Directories of artifacts that have appeared or changed, until cancelled; first all that are there.

    Some may have appeared between an earlier look and the first moment that is watched.
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
    """Of what lies directly in the root, and has changed somewhere in it."""
    paths = (Path(path) for _, path in changes)
    return {path.relative_to(root).parts[0] for path in paths if path != root}
