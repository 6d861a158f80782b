"""The report on all precisions for people: a table in Markdown and a chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from artifact.manifest import Graph, Manifest, Speed

TABLE, CHART = "report.md", "report.png"
HEADINGS = (
    "graph",
    "precision",
    "MiB",
    "of fp32",
    "top-1",
    "as fp32",
    "images/s",
    "of fp32",
    "fastest engine",
)
MARKERS = "osD^vP"
COLOURS = {"fp32": "#4c72b0", "bf16": "#8172b3", "fp16": "#55a868", "int8": "#c44e52", "int8-trt": "#ccb974"}


def write_report(manifest: Manifest, speeds: Mapping[str, tuple[Speed, ...]], folder: Path) -> Manifest:
    """Write TABLE and CHART into the artifact's directory; return the manifest with them and the speeds."""
    graphs = tuple(graph.model_copy(update={"speeds": speeds[graph.file]}) for graph in manifest.graphs)
    manifest = manifest.model_copy(update={"graphs": graphs, "reports": (TABLE, CHART)})
    (folder / TABLE).write_text(_markdown(manifest), encoding="utf-8")
    _draw(manifest, folder / CHART)
    return manifest


def rows(manifest: Manifest) -> list[tuple[str, ...]]:
    """Return a row for each graph, in the order of HEADINGS; "" if something was not measured."""
    return [_row(graph, manifest) for graph in manifest.graphs]


def _row(graph: Graph, manifest: Manifest) -> tuple[str, ...]:
    fp32 = manifest.graph(graph.kind, "fp32")
    assert fp32 is not None
    top1 = agreement = images_per_s = ratio = engine = ""
    if graph.accuracy:
        top1 = f"{100 * graph.accuracy.top1:.2f} %"
        if graph.accuracy.agreement is not None:
            agreement = f"{100 * graph.accuracy.agreement:.2f} %"
    if best := fastest(graph):
        images_per_s = f"{best.images_per_s:,.0f}"
        engine = f"{best.engine} {best.mode}"
        if reference := fastest(fp32):
            ratio = f"{best.images_per_s / reference.images_per_s:.2f}×"
    size = f"{graph.num_bytes / 2**20:.1f}"
    share = f"{graph.num_bytes / fp32.num_bytes:.2f}×"
    return (graph.kind, graph.precision, size, share, top1, agreement, images_per_s, ratio, engine)


def fastest(graph: Graph) -> Speed | None:
    return max(graph.speeds, key=lambda speed: speed.images_per_s, default=None)


def _markdown(manifest: Manifest) -> str:
    lines = [f"# {manifest.name} {manifest.version}", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(manifest)]
    if speed := next((speed for graph in manifest.graphs for speed in graph.speeds), None):
        lines += [
            "",
            f"Speeds: batches of {speed.batch} on {speed.machine}; engines that are right there only.",
        ]
    if any(graph.accuracy for graph in manifest.graphs):
        accuracy = next(graph.accuracy for graph in manifest.graphs if graph.accuracy)
        lines += [
            "",
            f"Accuracy: {accuracy.num_images:,} images of {accuracy.dataset}, by each file's arithmetic.",
        ]
    lines += [f"\n{graph.kind}: {graph.verdict}" for graph in manifest.graphs if graph.verdict]
    return "\n".join(lines) + f"\n\n![accuracy against speed and size]({CHART})\n"


def _draw(manifest: Manifest, path: Path) -> None:
    """Draw accuracy against speed for classify; each engine is a marker, whose area is the file's size."""
    from matplotlib.figure import Figure

    graphs = [graph for graph in manifest.graphs if graph.kind == "classify"]
    has_accuracy = all(graph.accuracy for graph in graphs)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    biggest = max(graph.num_bytes for graph in graphs)
    shapes: dict[str, str] = {}
    for row, graph in enumerate(graphs):
        height = 100 * graph.accuracy.top1 if graph.accuracy and has_accuracy else row
        colour = COLOURS[graph.precision]
        axes.scatter([], [], color=colour, label=f"{graph.precision}, {graph.num_bytes / 2**20:.1f} MiB")
        for speed in graph.speeds:
            shape = shapes.setdefault(f"{speed.engine} {speed.mode}", MARKERS[len(shapes) % len(MARKERS)])
            area = 50 + 350 * graph.num_bytes / biggest
            axes.scatter(speed.images_per_s, height, s=area, marker=shape, color=colour, alpha=0.55)
    for name, shape in shapes.items():
        axes.scatter([], [], marker=shape, color="grey", label=name)
    axes.set_xlim(0, 1.1 * max((speed.images_per_s for graph in graphs for speed in graph.speeds), default=1))
    bottom, top = axes.get_ylim()
    room = max(0.6, 0.35 * (top - bottom))  # so that a loss of a tenth of a point looks small
    axes.set_ylim(bottom - room, top + room)
    axes.set_xlabel("images a second, full batches")
    if has_accuracy:
        axes.set_ylabel("top-1 (%)")
    else:
        axes.set_yticks(range(len(graphs)), [graph.precision for graph in graphs])
    axes.grid(alpha=0.3)
    axes.legend(
        title="colour, area: precision, file\nshape: engine", loc="center left", bbox_to_anchor=(1, 0.5)
    )
    axes.set_title(f"{manifest.name} {manifest.version}: classify", loc="left")
    figure.savefig(path, dpi=110)
