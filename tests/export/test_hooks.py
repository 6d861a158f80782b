"""Scalars and maps from an exported graph against the same network, unfused and in float64, read by hooks."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from artifact.manifest import Manifest
from export.graph import export_graph
from export.verify import open_session, synthetic_images
from introspection.measure import measure
from models.pixels import normalised
from models.resnet import ResNet, build, describe_blocks
from tests.introspection.test_measure import reference_maps, reference_scalars
from tests.support.frozen import ROWS
from tests.support.measured import made_manifest
from tests.support.networks import liven, metadata_for

Float64 = NDArray[np.float64]
NUM_IMAGES = 2


def manifest_of(model: ResNet, size: int) -> Manifest:
    blocks = describe_blocks(model, size)
    return made_manifest([block.shape for block in blocks], model.variant, crop=size).model_copy(
        update={"blocks": blocks, "num_classes": model.spec.num_classes}
    )


def hooked(model: ResNet, x_NCHW: Tensor) -> list[tuple[Float64, Float64]]:
    """F and s [C, H, W] of every block for one image, by forward hooks on the modules that make them."""
    found: dict[nn.Module, Float64] = {}

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        found[module] = output[0].numpy().copy()

    paths = [(block.branch, block.shortcut) for _, block in model.named_blocks()]
    handles = [module.register_forward_hook(keep) for pair in paths for module in pair]
    with torch.no_grad():
        model(x_NCHW)
    for handle in handles:
        handle.remove()
    return [(found[branch], found[shortcut]) for branch, shortcut in paths]


@pytest.mark.parametrize(("row", "size"), [("D", 33), ("SE", 32), ("option A", 33), ("v2", 65)])
def test_every_quantity_is_what_hooks_see(row: str, size: int, tmp_path: Path) -> None:
    """Through the file, ONNX Runtime and `measure`."""
    name, changes = ROWS[row]
    model, images = liven(build(name, seed=5, **changes)), synthetic_images(NUM_IMAGES, size, seed=5)
    preprocessing, manifest = metadata_for(model, size).preprocessing, manifest_of(model, size)
    export_graph("introspect", model, preprocessing, tmp_path / "introspect.onnx")
    gates = np.ones((NUM_IMAGES, len(manifest.blocks)), np.float32)
    names = ("logits", "scalars", "maps")
    outputs = open_session(tmp_path / "introspect.onnx").run(names, {"images": images, "gates": gates})
    source = copy.deepcopy(model).double()
    for number in range(NUM_IMAGES):
        quantities = measure(
            manifest, {name: rows[number] for name, rows in zip(names, outputs, strict=True)}
        )
        for index, (F, s) in enumerate(
            hooked(source, normalised(images[[number]], preprocessing, torch.float64))
        ):
            for name, expected in reference_scalars(F, s, model.variant).items():
                # A sum within rounding of 0 may be counted on either side of it.
                tolerance = 3 / F.size if name.startswith("relu.") else 5e-5
                ours = quantities.scalars[name][index]
                assert ours == pytest.approx(expected, rel=1e-4, abs=tolerance), (name, index)
            for name, truth in reference_maps(F, s, model.variant).items():
                map_P = quantities.maps[name][quantities.slices[index]]
                known = np.isfinite(map_P)
                assert known.all() or name == "cosine"
                np.testing.assert_allclose(
                    map_P[known], truth.reshape(-1)[known], rtol=1e-3, atol=1e-3, err_msg=f"{name} {index}"
                )
