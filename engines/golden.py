"""The golden check: one image whose logits an artifact stores, for each of its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.errors import ResiduumError
from artifact.manifest import TOP_CLASS, Graph, Manifest, ManifestError
from artifact.preprocess import ImageError, Row, preprocess


class WrongAnswer(ResiduumError):
    """An engine's logits for the golden image differ from the golden ones; the message says by how much."""


def golden_row(directory: Path, manifest: Manifest) -> Row:
    """Return the golden image as a row of inputs; it is stored preprocessed, so this only decodes it.

    Raises:
        ManifestError: it cannot be read, or its size differs from the graphs' input.
    """
    spec = manifest.preprocessing
    try:
        data = (directory / manifest.golden_image).read_bytes()
        golden = preprocess(data, spec.model_copy(update={"resize": spec.crop}))
    except (OSError, ImageError) as error:
        raise ManifestError(f"the golden image of {directory} cannot be read: {error}") from error
    if (golden.width, golden.height) != (spec.crop, spec.crop):
        raise ManifestError(f"the golden image of {directory} is not {spec.crop} x {spec.crop}")
    gates_L = np.ones(len(manifest.blocks), np.float32)
    return {"images": golden.pixels, "gates": gates_L, "target": np.array(TOP_CLASS, np.int64)}


def golden_batch(row: Row, graph: Graph, size: int) -> dict[str, NDArray[Any]]:
    """Return a batch of `size` copies of the row, with the inputs that the graph has."""
    return {tensor.name: np.repeat(row[tensor.name][None], size, axis=0) for tensor in graph.inputs}


def check_golden(outputs: Mapping[str, NDArray[Any]], graph: Graph, num_classes: int, size: int) -> float:
    """Return the largest absolute difference of the logits of `size` rows from the golden ones.

    Raises:
        WrongAnswer: the difference is above the graph's tolerance or NaN, the shape is wrong, or the
            contributions do not sum to the logit.
    """
    what = f"{graph.file} at batch size {size}"
    shape = (size, num_classes)
    logits_NK = outputs.get("logits", np.empty(0))
    if logits_NK.shape != shape:
        raise WrongAnswer(f"{what}: the logits have the shape {logits_NK.shape}, not {shape}")
    error = float(np.abs(logits_NK - np.asarray(graph.golden_logits)).max())
    if not error <= graph.golden_tolerance:
        raise WrongAnswer(
            f"{what}: the golden logits differ by {error:.3g}, more than {graph.golden_tolerance:.3g}"
        )
    if "contributions" in outputs:
        parts_N = outputs["contributions"].sum(1) + outputs["constants"].sum(1)
        gap = float(np.abs(parts_N - logits_NK.max(1)).max())
        if not gap <= graph.golden_tolerance:
            raise WrongAnswer(
                f"{what}: contributions miss the logit by {gap:.3g}, more than {graph.golden_tolerance:.3g}"
            )
    return error
