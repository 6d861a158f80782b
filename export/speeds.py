"""How fast this machine's engines run each graph of an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.manifest import Manifest, Speed
    from service.settings import Settings


def time_graphs(settings: Settings, folder: Path, manifest: Manifest) -> dict[str, tuple[Speed, ...]]:
    """How fast this machine's engines run each graph; those that give wrong answers here are left out."""
    from models.manifest import Speed
    from service.engines.machine import describe_machine, gpu_name
    from service.selection import try_graph

    speeds: dict[str, tuple[Speed, ...]] = {}
    for graph in manifest.graphs:
        speeds[graph.file] = tuple(
            Speed(
                engine=trial.engine,
                mode=trial.mode or "",
                machine=(gpu_name() if trial.device == "cuda" else None) or describe_machine(),
                batch=settings.max_batch_size,
                images_per_s=1000 / trial.loaded_ms[trial.instances],
            )
            for trial in try_graph(folder, manifest, graph, settings)
            if trial.problem is None
        )
    return speeds
