"""What is usual: percentiles over images, as numpy finds them in what the graphs give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from artifact.manifest import read_manifest
from export import reference
from export.reference import measure_reference
from export.verify import synthetic_images
from introspection.measure import measure

IMAGES = synthetic_images(20, 32, seed=11)


@pytest.fixture(scope="module")
def outputs(artifact: Path) -> list[dict[str, np.ndarray]]:
    """Of the attribute graph, for every image."""
    session = ort.InferenceSession(artifact / "attribute.fp32.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    feed = {"images": IMAGES, "gates": np.ones((20, 9), np.float32), "target": np.full(20, -1)}
    arrays = session.run(names, feed)
    return [dict(zip(names, row, strict=True)) for row in zip(*arrays, strict=True)]


def test_bands_are_percentiles_over_the_images(artifact: Path, outputs: list[dict[str, np.ndarray]]) -> None:
    manifest = read_manifest(artifact)
    found = measure_reference(artifact, manifest, IMAGES, "made up")
    assert (found.dataset, found.num_images, found.num_lesion_images) == ("made up", 20, 20)
    measured = [measure(manifest, row) for row in outputs]
    for name in ("rms.residual", "ratio", "contribution"):
        values = np.stack([quantities.scalars[name] for quantities in measured])
        expected = np.percentile(values, (5, 50, 95), axis=0).T
        np.testing.assert_allclose(np.array(found.scalars[name]), expected, rtol=1e-3, atol=1e-5)
    bands = found.scalars["lens.probability"]
    assert bands[:6] == (None,) * 6  # the last stage has three blocks
    assert all(band is not None for band in bands[6:])
    largest = [np.abs(quantities.maps["contribution"][quantities.slices[4]]).max() for quantities in measured]
    assert found.maps["contribution"][4] == pytest.approx(np.percentile(largest, 95), rel=1e-3)
    assert set(found.maps) == {"residual", "shortcut", "output", "contribution"}


def test_lesions_are_of_fewer_images_in_a_deep_network(
    artifact: Path, outputs: list[dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAX_LESION_ROWS", 30)  # ten rows an image
    found = measure_reference(artifact, read_manifest(artifact), IMAGES, "made up")
    assert found.num_lesion_images == 3
    session = ort.InferenceSession(artifact / "introspect.fp32.onnx", providers=["CPUExecutionProvider"])
    deltas = []
    for index in (0, 6, 13):
        gates = np.ones((2, 9), np.float32)
        gates[1, 2] = 0
        [whole, without] = session.run(["logits"], {"images": IMAGES[[index] * 2], "gates": gates})[0]
        deltas.append(without[whole.argmax()] - whole.max())
    expected = np.percentile(deltas, (5, 50, 95))
    np.testing.assert_allclose(found.scalars["lesion.delta_logit"][2], expected, rtol=1e-3, atol=1e-5)
