"""Find artifacts on disk: the embedded one, one by name, one by path, all below a directory.

This is the only module that looks for artifacts on disk.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from artifact.errors import ResiduumError
from artifact.manifest import MANIFEST_FILE

EMBEDDED = "embedded"  # the name of the model that comes with the package


class ArtifactNotFound(ResiduumError):
    """There is no artifact of that name; the message lists those that exist."""


def is_artifact(directory: Path) -> bool:
    """Return whether a directory contains a manifest; the manifest may be unreadable."""
    return (directory / MANIFEST_FILE).is_file()


def find_artifact(name: str, artifacts: Path) -> Path:
    """Return the directory of an artifact.

    Args:
        name: "embedded", the name of a directory below `artifacts`, or a path.

    Raises:
        ArtifactNotFound: there is none.
    """
    if name == EMBEDDED:
        return Path(str(files("models") / "embedded"))
    for directory in (artifacts / name, Path(name).expanduser()):
        if is_artifact(directory):
            return directory
    names = [directory.name for directory in artifacts_in(artifacts)]
    raise ArtifactNotFound(
        f"--model {name}: there is no artifact of that name in {artifacts}, nor at that path; "
        f"there is: {', '.join([EMBEDDED, *names])}"
    )


def artifacts_in(directory: Path) -> list[Path]:
    """Return the directories of the artifacts directly below `directory`, sorted by name.

    Names that begin with a dot are left out, so that an artifact can be written under such a name and renamed
    when it is complete.
    """
    return sorted(path.parent for path in directory.glob(f"[!.]*/{MANIFEST_FILE}"))
