"""A step of benchmarks/gpu.py: train a small network here, export it, and compare every engine with torch.

The images are made on the spot: ten colour fields with noise, which a network tells apart after a few steps.

Shapes: N batch, K classes.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from artifact.manifest import TOP_CLASS, Graph, Label, Precision, Preprocessing
from benchmarks.gpu import Context
from benchmarks.gpu_ways import WAYS, Way, failures, opened
from engines.engine import Engine, EngineError, EngineUnavailable
from export.from_checkpoint import from_checkpoint
from export.pipeline import export_artifact
from export.precisions import ExportPlan
from export.verify import TOLERANCES, synthetic_images
from models.pixels import normalised
from models.resnet import ResNet
from models.training.data import ImageSet
from models.training.loop import train
from models.training.recipe import get_recipe

NUM_CLASSES = 10
SIZE = 32
NOISE = 40.0
NUM_FRESH = 64
BATCHES = (1, 8, NUM_FRESH)


class Answers(NamedTuple):
    """Fresh images uint8 [N, H, W, 3], their labels [N], and torch's logits [N, K]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]


def trained(context: Context) -> dict[str, Any]:
    """Return the accuracy of the run, and for every engine and precision the distance from torch's logits."""
    count, epochs, batch_size = (256, 2, 64) if context.quick else (4096, 5, 128)
    precisions: tuple[Precision, ...] = () if context.quick else ("fp16", "bf16")
    recipe = replace(
        get_recipe("cifar10-resnet20"),
        epochs=epochs,
        batch_size=batch_size,
        schedule="cosine",
        recalibrate=True,
    )
    checkpoint = train(
        recipe,
        made_up_set(count, seed=1),
        made_up_set(256, seed=2),
        context.folder / "run",
        accelerator=context.device,
    )
    network = from_checkpoint(checkpoint)
    accuracy = network.metadata.accuracy
    document: dict[str, Any] = {"valid_top1": accuracy and accuracy.top1, "rows": []}
    context.keep("trained", document)
    directory = context.folder / "trained"
    manifest = export_artifact(network, "trained", directory, ExportPlan(precisions))
    fresh = made_up_set(NUM_FRESH, seed=3)
    images, labels = fresh.images.numpy(), fresh.labels.numpy()
    logits = torch_logits(network.model, images, manifest.preprocessing, context.device)
    answers = Answers(images, labels, logits)
    document["torch_top1"] = float((logits.argmax(1) == labels).mean())
    for way in WAYS[context.device]:  # type: ignore[index]
        for graph in manifest.graphs:
            # Of what is compiled for minutes, one graph.
            worth = not way.compiles or (graph.kind, graph.precision) == ("classify", "fp16")
            if graph.precision in way.precisions and worth:
                document["rows"].append(compare(way, graph, directory, answers, context))
                context.keep("trained", document)
    return document | {"failures": failures(document["rows"])}


def made_up_set(count: int, seed: int) -> ImageSet:
    """Return labelled images: a field of colours for each class, the same for every seed, with noise."""
    rng = np.random.default_rng(seed)
    fields = synthetic_images(NUM_CLASSES, SIZE, seed=0).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, count)
    pixels = fields[labels] + rng.normal(0, NOISE, (count, SIZE, SIZE, 3))
    return ImageSet(
        "made-up images",
        torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)),
        torch.from_numpy(labels).long(),
        tuple(Label(label=f"field {number}") for number in range(NUM_CLASSES)),
    )


@torch.inference_mode()
def torch_logits(
    model: ResNet, images: NDArray[np.uint8], preprocessing: Preprocessing, device: str
) -> NDArray[np.float32]:
    """Return the logits [N, K] of the network itself, with its BatchNorms, in fp32 on the device."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    pixels = normalised(images, preprocessing, torch.float32).to(device)
    logits = model.to(device).eval()(pixels).cpu().numpy()
    model.cpu()
    return logits


def compare(
    way: Way,
    graph: Graph,
    directory: Path,
    answers: Answers,
    context: Context,
) -> dict[str, Any]:
    """Return the largest difference of an engine's logits from torch's, over several batch sizes.

    It is right within the tolerance of the golden check of its precision.
    """
    row: dict[str, Any] = {"way": way.title, "graph": graph.kind, "precision": graph.precision}
    unit = max(1.0, float(np.ptp(answers.logits)))
    sizes = BATCHES[:1] if way.compiles else BATCHES
    device = context.device
    try:
        engine, row["open_s"] = opened(
            way, directory / graph.file, graph.precision, device, sizes, context.folder / "plans"
        )
        with closing(engine):
            found = [run_all(engine, graph, answers.images, size) for size in sizes]
    except EngineUnavailable as error:
        return row | {"unavailable": str(error)}
    except EngineError as error:
        return row | {"error": str(error)}
    deltas = [float(np.abs(logits - answers.logits).max()) for logits in found]
    agreement = min(float((logits.argmax(1) == answers.logits.argmax(1)).mean()) for logits in found)
    return row | {
        "batches": sizes,
        "max_abs_delta_logit": max(deltas),
        "of_range": max(deltas) / unit,
        "top1_agreement": agreement,
        "top1": float((found[0].argmax(1) == answers.labels).mean()),
        "right": all(delta <= TOLERANCES[graph.precision].golden * unit for delta in deltas),
    }


def run_all(engine: Engine, graph: Graph, images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Return the logits of all images, computed `size` at a time."""
    num_blocks = next((tensor.shape[1] for tensor in graph.inputs if tensor.name == "gates"), 0)
    parts = []
    for start in range(0, len(images), size):
        part = images[start : start + size]
        offered: dict[str, NDArray[Any]] = {
            "images": part,
            "gates": np.ones((len(part), int(num_blocks)), np.float32),
            "target": np.full(len(part), TOP_CLASS, np.int64),
        }
        parts.append(engine.run({tensor.name: offered[tensor.name] for tensor in graph.inputs})["logits"])
    return np.concatenate(parts)
