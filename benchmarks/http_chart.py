"""The chart of benchmarks/http.py: requests a second, latencies, and goodput under overload."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS, THEIRS, LINE = "#1f6fb4", "#9aa5b1", "#c0392b"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw what `bench_http` returns into a PNG, one row for each model."""
    models, settings = document["models"], document["settings"]
    figure = Figure(figsize=(14, 4.6 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 3, width_ratios=(1.3, 1, 1), squeeze=False)
    for (speed, latency, overload), measured in zip(grid, models.values(), strict=True):
        rows = {name: row for name, row in measured["servers"].items() if row["requests_per_s"]}
        connections = settings["connections"]
        _draw_speed(speed, rows, statistics.median(measured["ceiling"]["rounds"]), connections)
        _draw_latency(latency, rows, connections)
        latency.set_ylim(speed.get_ylim())  # an offset for each bar of a pair
        if measured["ours"] is not None:
            most = rows["residuum"]["requests_per_s"]
            _draw_overload(overload, measured["ours"]["overloads"], most, settings["limit_ms"])
        speed.set_ylabel(measured["model"])
    machine, images = document["machine"], document["images"]
    figure.suptitle(
        f"JPEG of {images['mean_bytes'] / 1000:.0f} kB, {machine['cores']} cores of {machine['cpu']}, "
        "shared with the load tool"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _draw_speed(axes: Axes, rows: Mapping[str, Any], ceiling: float, connections: int) -> None:
    titles = [row["title"] for row in rows.values()]
    rates = [row["requests_per_s"] for row in rows.values()]
    bars = axes.barh(titles, rates, color=[OURS if name == "residuum" else THEIRS for name in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(ceiling, color=LINE, linestyle="--")
    axes.invert_yaxis()
    axes.set(
        title=f"Throughput, {connections} connections",
        xlabel="requests a second; dashed: decoding and inference alone",
    )
    axes.set_xlim(0, 1.15 * max(ceiling, *rates))


def _draw_latency(axes: Axes, rows: Mapping[str, Any], connections: int) -> None:
    for index, (name, row) in enumerate(rows.items()):
        colour = OURS if name == "residuum" else THEIRS
        axes.plot([row["p50_ms"], row["p99_ms"]], [index, index], color=colour, linewidth=2)
        axes.plot(row["p50_ms"], index, "o", color=colour, label="p50" if not index else None)
        axes.plot(row["p99_ms"], index, "|", color=colour, markersize=14, label="p99" if not index else None)
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.set(title=f"Latency, {connections} connections", xlabel="ms")
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    axes.legend()


def _draw_overload(axes: Axes, loads: list[dict[str, Any]], most: float, limit_ms: float) -> None:
    offered = [load["rate"] for load in loads]
    axes.plot(offered, [load["goodput"] for load in loads], "o-", color=OURS, label="goodput")
    axes.axhline(0.95 * most, color=LINE, linestyle="--", label="95 % of the peak")
    axes.set(
        title=f"Overload, 200 within {limit_ms:g} ms",
        xlabel="offered, requests a second (open loop)",
        ylabel="requests a second",
        xlim=(0, 1.05 * max(offered)),
        ylim=(0, 1.2 * most),
    )
    axes.grid(alpha=0.3)
    axes.legend()
