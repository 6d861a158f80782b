"""Training curves as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def plot_curves(history: Sequence[dict[str, float]], title: str, path: Path) -> None:
    """Draw loss and accuracy by epoch, side by side."""
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    for axes, names, unit in (
        (losses, ("train_loss", "valid_loss"), "cross-entropy (nats)"),
        (accuracy, ("valid_top1", "valid_top5"), "accuracy (%)"),
    ):
        for name in names:
            scale = 100 if axes is accuracy else 1
            axes.plot(
                epochs, [row[name] * scale for row in history], marker=".", label=name.replace("_", " ")
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
