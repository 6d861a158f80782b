"""Where a graph comes from: what choosing, trying and opening an engine for it have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Generic, TypeVar

from artifact.manifest import Graph, GraphKind, Manifest
from artifact.preprocess import Row
from engines.settings import EngineSettings

S = TypeVar("S", bound=EngineSettings)


@dataclass(frozen=True)
class Source(Generic[S]):
    """The graphs of one kind in an artifact, and how they may be run.

    Attributes:
        row: the golden image, as `engines.golden.golden_row` returns it.
        stop: loading ends early once this event is set; None: it cannot be stopped.
        keep: whether what is measured is stored for the next start.
    """

    directory: Path
    manifest: Manifest
    kind: GraphKind
    row: Row
    settings: S
    stop: Event | None = None
    keep: bool = True

    @property
    def stopped(self) -> bool:
        """Whether loading was told to end early."""
        return self.stop is not None and self.stop.is_set()

    @property
    def cache(self) -> Path:
        """The directory for measured choices and compiled plans of this artifact; it may not exist yet."""
        folder = self.directory.resolve()
        if self.settings.engine_cache is not None:
            return self.settings.engine_cache / f"{folder.name}-{self.manifest.version}"
        return folder.with_name(f"{folder.name}.cache")

    def path(self, graph: Graph) -> Path:
        """Return the path of a graph's ONNX file."""
        return self.directory / graph.file
