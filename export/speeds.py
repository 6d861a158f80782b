"""How fast this machine's engines run each graph of an artifact."""

from __future__ import annotations

from pathlib import Path

from artifact.manifest import Manifest, Speed
from engines.golden import golden_row
from engines.machine import describe_machine, gpu_name
from engines.selection.choice import try_graph
from engines.selection.source import Source
from engines.settings import EngineSettings


def time_graphs(settings: EngineSettings, folder: Path, manifest: Manifest) -> dict[str, tuple[Speed, ...]]:
    """Return the speed of each graph by its file; engines that give wrong answers here are left out."""
    speeds: dict[str, tuple[Speed, ...]] = {}
    row = golden_row(folder, manifest)
    for graph in manifest.graphs:
        source = Source(folder, manifest, graph.kind, row, settings)
        speeds[graph.file] = tuple(
            Speed(
                engine=trial.engine,
                mode=trial.mode or "",
                machine=(gpu_name() if trial.device == "cuda" else None) or describe_machine(),
                batch=settings.max_batch_size,
                images_per_s=1000 / trial.loaded_ms[trial.instances],
            )
            for trial in try_graph(source, graph)
            if trial.problem is None
        )
    return speeds
