"""Measure what pruning costs and gains: accuracy against speed.

    python -m benchmarks.pruning CHECKPOINT --data PATH --out pruning.png
    python -m benchmarks.pruning CHECKPOINT --data PATH --ratios 0,0.3,0.6 --epochs 0

For each ratio: prune, estimate the BatchNorm statistics again, fine-tune on some training images, and measure
top-1 accuracy on validation images and speed; both of the exported graph in ONNX Runtime on the CPU. The
networks are timed in turn, one batch each, so that other work on the machine affects all of them alike. The
theory is printed first, then the table; the last line printed is JSON.

Shapes: N images, H W space.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from export.graph import export_graph
from export.prune import NUM_STATISTICS_IMAGES, prune
from export.verify import open_session
from models.checkpoint import CheckpointMetadata, load_checkpoint
from models.count import count
from models.resnet import ResNet
from models.training.data import ImageSet, load_images
from models.training.fine_tune import fine_tune, fine_tune_recipe
from models.training.recipe import Recipe

Row = dict[str, Any]


def main() -> None:
    args = parse_arguments()
    model, metadata = load_checkpoint(args.checkpoint)
    recipe = recipe_for(metadata, args)
    served = metadata.preprocessing
    stored = served.model_copy(update={"resize": recipe.store_size, "crop": recipe.store_size})
    train_set = load_images(args.data, "train", stored, args.train_images, spread=True)
    valid_set = load_images(args.data, "valid", served, args.valid_images, spread=True)
    calibration = load_images(args.data, "train", served, NUM_STATISTICS_IMAGES, spread=True).images.numpy()
    networks = {ratio: prune(model, ratio, calibration, served) for ratio in args.ratios}
    rows = [theory(ratio, network, model, served.crop) for ratio, network in networks.items()]
    print_theory(model, rows)
    with tempfile.TemporaryDirectory() as folder:
        for row, network in zip(rows, networks.values(), strict=True):
            row["graph"] = Path(folder) / f"{row['ratio']}.onnx"
            export_graph("classify", network, served, row["graph"])
            row["top1_pruned"] = row["top1"] = top1(row["graph"], valid_set)
            if args.epochs:
                tuned, _ = fine_tune(network, recipe, train_set, valid_set, Path(folder) / "run")
                export_graph("classify", tuned, served, row["graph"])
                row["top1"] = top1(row["graph"], valid_set)
        measure_speeds(rows, args.batch, served.crop, args.seconds)
    print_table(rows)
    if args.out:
        plot(rows, f"{model.spec.name}, batch {args.batch}", args.out)
    for row in rows:
        del row["graph"]
    settings = {key: getattr(args, key) for key in ("batch", "epochs", "train_images", "valid_images")}
    print(json.dumps({"model": model.spec.name, **settings, "rows": rows}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="the checkpoint that `residuum train` wrote")
    parser.add_argument("--data", required=True, help="a data set, as for `residuum train`")
    parser.add_argument("--ratios", type=numbers, default=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    parser.add_argument("--epochs", type=int, default=1, help="epochs of fine-tuning; 0: none (default: 1)")
    parser.add_argument(
        "--train-images", type=int, default=20_000, help="number of images to fine-tune on (default: 20000)"
    )
    parser.add_argument("--train-size", type=int, help="side of the training images (default: as served)")
    parser.add_argument("--valid-images", type=int, default=2_000, help="(default: 2000)")
    parser.add_argument("--batch", type=int, default=8, help="batch size of the timing (default: 8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time for each network (default: 5)")
    parser.add_argument("--out", type=Path, metavar="PNG", help="write a plot")
    return parser.parse_args()


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def recipe_for(metadata: CheckpointMetadata, args: argparse.Namespace) -> Recipe:
    recipe = fine_tune_recipe(metadata, max(1, args.epochs))
    return replace(recipe, resolutions=((1.0, args.train_size),)) if args.train_size else recipe


def theory(ratio: float, network: ResNet, before: ResNet, size: int) -> Row:
    cost, full = (count(replace(model.spec, input_size=size)) for model in (network, before))
    return {
        "ratio": ratio,
        "num_parameters": cost.num_parameters,
        "num_macs": cost.num_macs,
        "macs_saved": full.num_macs
        / cost.num_macs,  # the speed-up if every multiplication took the same time
    }


def print_theory(model: ResNet, rows: Sequence[Row]) -> None:
    print(
        f"{model.spec.name}: what the shapes say\n{'ratio':>6}{'M parameters':>14}{'M MACs':>9}{'fewer':>8}"
    )
    for row in rows:
        print(
            f"{row['ratio']:>6.2f}{row['num_parameters'] / 1e6:>14.3f}{row['num_macs'] / 1e6:>9.1f}"
            f"{row['macs_saved']:>7.2f}x",
            flush=True,
        )


def top1(graph: Path, images: ImageSet) -> float:
    session = open_session(graph)
    right = 0
    for chunk, labels in zip(images.images.split(64), images.labels.split(64), strict=True):
        (logits,) = session.run(["logits"], {"images": chunk.numpy()})
        right += int((torch.from_numpy(logits).argmax(1) == labels).sum())
    return right / len(images)


def measure_speeds(rows: Sequence[Row], batch: int, size: int, seconds: float) -> None:
    """Add to each row `p50_ms` of a batch, the resulting `images_per_s`, and `speedup` over the first row."""
    sessions = [open_session(row["graph"]) for row in rows]
    inputs = {"images": np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)}
    times_ms: list[list[float]] = [[] for _ in rows]
    for session in sessions:
        session.run(None, inputs)
    end = time.perf_counter() + seconds * len(rows)
    while time.perf_counter() < end:
        for session, times in zip(sessions, times_ms, strict=True):
            started = time.perf_counter()
            session.run(None, inputs)
            times.append((time.perf_counter() - started) * 1000)
    for row, times in zip(rows, times_ms, strict=True):
        row["p50_ms"] = statistics.median(times)
        row["images_per_s"] = 1000 * batch / row["p50_ms"]
        # Ratios within a round, so that a slow round affects both alike.
        row["speedup"] = statistics.median(first / own for first, own in zip(times_ms[0], times, strict=True))


def print_table(rows: Sequence[Row]) -> None:
    print(
        f"{'ratio':>6}{'top-1 pruned':>14}{'fine-tuned':>12}"
        f"{'p50 ms':>9}{'images/s':>10}{'speed':>8}{'theory':>8}"
    )
    for row in rows:
        print(
            f"{row['ratio']:>6.2f}{row['top1_pruned']:>14.2%}{row['top1']:>12.2%}{row['p50_ms']:>9.2f}"
            f"{row['images_per_s']:>10.1f}{row['speedup']:>7.2f}x{row['macs_saved']:>7.2f}x"
        )


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Plot accuracy against measured speed, and measured against theoretical speed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, speed = figure.subplots(1, 2)
    speeds = [row["speedup"] for row in rows]
    tuned = any(row["top1"] != row["top1_pruned"] for row in rows)
    for name, label in (("top1", "fine-tuned"),) * tuned + (("top1_pruned", "new statistics only"),):
        accuracy.plot(speeds, [100 * row[name] for row in rows], marker=".", label=label)
    for row in rows:
        place = (row["speedup"], 100 * row["top1"])
        accuracy.annotate(f"{row['ratio']:g}", place, xytext=(4, 4), textcoords="offset points")
    accuracy.set(xlabel="speed, unpruned = 1", ylabel="top-1 (%)")
    ratios = [row["ratio"] for row in rows]
    speed.plot(ratios, speeds, marker=".", label="measured")
    speed.plot(ratios, [row["macs_saved"] for row in rows], marker=".", label="by multiplications")
    speed.set(xlabel="fraction of hidden channels pruned", ylabel="speed, unpruned = 1")
    for axes in (accuracy, speed):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
