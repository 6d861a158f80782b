"""The desired state of a server with several workers: which models each worker should have.

A worker that takes a dead one's place is given this state, and never the history that led to it. This module
knows no processes and no engines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Change:
    """A model to load from a directory, or to unload.

    Attributes:
        directory: where the artifact lies; None: the model is unloaded.
        fingerprint: of the version that was loaded; "" for a change that has not been made.
    """

    name: str
    directory: Path | None
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"unload {self.name}" if self.directory is None else f"load {self.directory}"

    def members(self) -> dict[str, str | None]:
        """Return the change as members of a message."""
        directory = None if self.directory is None else str(self.directory)
        return {"name": self.name, "directory": directory, "fingerprint": self.fingerprint}

    @classmethod
    def from_members(cls, message: dict[str, Any]) -> Change:
        """Return the change in a message; raise KeyError or TypeError if there is none."""
        name, directory, fingerprint = message["name"], message["directory"], message["fingerprint"]
        if not (isinstance(name, str) and isinstance(fingerprint, str)):
            raise TypeError("the name or the fingerprint is no text")
        return cls(name, None if directory is None else Path(directory), fingerprint)


class Wanted:
    """The models that should be loaded, the default one first, and those that were unloaded."""

    def __init__(self, loaded: Iterable[Change]) -> None:
        self._changes = {change.name: change for change in loaded}

    def __contains__(self, name: str) -> bool:
        return name in self._changes

    @property
    def loaded(self) -> list[Change]:
        return [change for change in self._changes.values() if change.directory is not None]

    @property
    def unloaded(self) -> list[str]:
        """The names of models that are served no more, although their artifacts may lie there."""
        return [change.name for change in self._changes.values() if change.directory is None]

    def note(self, change: Change) -> None:
        """Note a change that was made: a model that is swapped keeps its place in the order."""
        before = self._changes.get(change.name)
        if before is not None and before.directory is None:
            del self._changes[change.name]  # loaded again, it comes last
        self._changes[change.name] = change

    def differs_from(self, change: Change) -> bool:
        """Return whether another version of a loaded model is wanted than the one that was loaded."""
        wanted = self._changes.get(change.name)
        return wanted is not None and wanted.directory is not None and wanted != change
