"""Gates against networks from which a branch was really taken out: unfused, in float64."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch

from export.graph import IntrospectGraph
from export.verify import synthetic_images
from models.pixels import normalised
from models.resnet import ResNet, build
from tests.support.frozen import ROWS, without_branch
from tests.support.networks import liven, metadata_for

SIZE = 33
LESIONED = ROWS | {"highway": ("highway20", {"depths": (1, 1, 1)})}


@cache
def network(row: str) -> ResNet:
    name, changes = LESIONED[row]
    return liven(build(name, seed=4, **changes))


@pytest.mark.parametrize("row", LESIONED)
def test_a_gate_of_zero_is_a_network_without_the_branch(row: str) -> None:
    """All of them in one batch: the first row has every branch, row l + 1 lacks that of block l."""
    model = network(row)
    names = [name for name, _ in model.named_blocks()]
    gates = torch.ones(len(names) + 1, len(names))
    gates[1:].fill_diagonal_(0)
    image, preprocessing = synthetic_images(1, SIZE, seed=9), metadata_for(model, SIZE).preprocessing
    images = torch.from_numpy(np.repeat(image, len(gates), 0))
    source = copy.deepcopy(model).double()
    with torch.no_grad():
        logits = IntrospectGraph(model, preprocessing)(images, gates)[0].numpy()
        x_NCHW = normalised(image, preprocessing, torch.float64)
        expected = [
            network(x_NCHW)[0].numpy()
            for network in (source, *(without_branch(source, name) for name in names))
        ]
    tolerance = 1e-5 * max(1, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)
    moved = np.abs(np.stack(expected[1:]) - expected[0]).max(1)
    assert (moved > 100 * tolerance).all(), "lesions that change nothing show nothing"
