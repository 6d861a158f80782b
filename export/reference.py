"""The usual values of a network: percentiles of every scalar and map over validation images.

The manifest holds them, so that a server can say what is unusual about a photograph, and draw several
photographs on one scale. They are measured with the artifact's own graphs, and with the functions with which
the server answers.

Shapes: N images, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifact.manifest import PERCENTILES, TOP_CLASS, GraphKind, Manifest, Reference
from artifact.preprocess import Row
from engines.engine import EngineOptions
from engines.registry import BASELINE, open_engine
from introspection.attribution import lesion_scalars
from introspection.digits import significant
from introspection.graph_inputs import lesion_rows
from introspection.measure import measure
from introspection.quantities import LESIONS, MAPS
from introspection.readings import FloatArray, LesionLogits

NUM_IMAGES = 1000
# The number of images for which every block is removed once; fewer for deep networks.
NUM_LESION_IMAGES, MAX_LESION_ROWS = 128, 2048
BATCH = 16
# Maps without a scale by definition; UNCLIPPED per cent of images are drawn without clipping.
SCALED = tuple(name for name, row in MAPS.items() if row.range is None)
UNCLIPPED = 95

Run = Callable[[Sequence[Row]], Iterator[dict[str, NDArray[Any]]]]


def measure_reference(
    directory: Path, manifest: Manifest, images_NHW3: NDArray[np.uint8], dataset: str
) -> Reference:
    """Measure at most NUM_IMAGES of the images, evenly spaced, each for its own top class.

    Args:
        directory: of the graphs; `manifest` need not be written yet.

    Raises:
        EngineError: a graph does not run on ONNX Runtime's CPU provider.
        NotFiniteError: an image's activations leave float32's range.
    """
    images = _evenly(images_NHW3, NUM_IMAGES)
    num_blocks = len(manifest.blocks)
    lesioned = _evenly(images, min(NUM_LESION_IMAGES, max(1, MAX_LESION_ROWS // (num_blocks + 1))))
    scalars: dict[str, list[FloatArray]] = {}
    peaks: dict[str, list[FloatArray]] = {}
    with _engine(directory, manifest, "attribute") as run:
        ones_L, target = np.ones(num_blocks, np.float32), np.array(TOP_CLASS, np.int64)
        for outputs in run([{"images": pixels, "gates": ones_L, "target": target} for pixels in images]):
            found = measure(manifest, outputs)
            _note(scalars, found.scalars)
            largest: dict[str, FloatArray] = {
                quantity: np.array([np.abs(found.maps[quantity][part]).max() for part in found.slices])
                for quantity in SCALED
                if quantity in found.maps
            }
            _note(peaks, largest)
    with _engine(directory, manifest, "introspect") as run:
        for pixels in lesioned:
            _note(scalars, _lesions(run, pixels, num_blocks))
    return Reference(
        dataset=dataset,
        num_images=len(images),
        num_lesion_images=len(lesioned),
        scalars={name: _bands(np.stack(values_NL)) for name, values_NL in scalars.items()},
        maps={
            quantity: tuple(_rounded(np.percentile(np.stack(peaks_NL), UNCLIPPED, axis=0)))
            for quantity, peaks_NL in peaks.items()
            if np.isfinite(peaks_NL).all()
        },
    )


def _lesions(run: Run, pixels: NDArray[np.uint8], num_blocks: int) -> dict[str, FloatArray]:
    """Return the scalars `lesion.*` of one image, [L] each."""
    blocks = tuple(range(num_blocks))
    rows = lesion_rows(pixels, np.ones(num_blocks, np.float32), blocks)
    lesions = LesionLogits(blocks, np.stack([outputs["logits"] for outputs in run(rows)]))
    top1 = int(lesions.logits[0].argmax())
    scalars = lesion_scalars(lesions, num_blocks, top1, top1)
    return {f"{LESIONS}.{name}": values_L for name, values_L in scalars.items()}


def _note(noted: dict[str, list[FloatArray]], values: Mapping[str, FloatArray]) -> None:
    for name, values_L in values.items():
        noted.setdefault(name, []).append(values_L)


@contextmanager
def _engine(directory: Path, manifest: Manifest, kind: GraphKind) -> Iterator[Run]:
    """Open a graph, and yield a function that runs rows and yields the outputs of each row."""
    graph = manifest.graph(kind, "fp32")
    assert graph is not None, "every artifact that is exported has it"
    engine = open_engine(BASELINE, directory / graph.file, graph.precision, EngineOptions("cpu"))
    names = [tensor.name for tensor in graph.inputs]

    def run(rows: Sequence[Row]) -> Iterator[dict[str, NDArray[Any]]]:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            outputs = engine.run({name: np.stack([row[name] for row in batch]) for name in names})
            for place in range(len(batch)):
                yield {name: array[place] for name, array in outputs.items()}

    try:
        yield run
    finally:
        engine.close()


def _evenly(images_NHW3: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    count = min(count, len(images_NHW3))
    return images_NHW3[np.arange(count) * len(images_NHW3) // count]


def _bands(values_NL: FloatArray) -> tuple[tuple[float, float, float] | None, ...]:
    """Return the percentiles of every block over the images where it has a value; None if in no image."""
    bands: list[tuple[float, float, float] | None] = []
    for values_N in values_NL.T:
        known = values_N[np.isfinite(values_N)]
        low, median, high = _rounded(np.percentile(known, PERCENTILES)) if len(known) else (0.0, 0.0, 0.0)
        bands.append((low, median, high) if len(known) else None)
    return tuple(bands)


def _rounded(values: FloatArray) -> list[float]:
    return [significant(value) for value in values]
