"""Random weights: a real network that has learnt nothing, the same one for the same seed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from export.random_weights import random_model, sha256_of_weights
from export.verify import synthetic_images
from models.pixels import normalised
from models.zoo import UnknownArchitecture

FP16_MAX = 65_504


def test_the_same_seed_gives_the_same_weights() -> None:
    first, again, other = (random_model("resnet20", seed)[0] for seed in (1, 1, 2))
    assert sha256_of_weights(first) == sha256_of_weights(again) != sha256_of_weights(other)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for layer, others in ((first.stem.conv, other.stem.conv), (first.head, other.head)):
        assert not torch.equal(layer.weight, others.weight)


def test_what_is_known_of_it() -> None:
    model, metadata = random_model("resnet20", 5)
    assert not model.training
    assert metadata.seed == 5
    assert metadata.architecture["name"] == "resnet20"
    assert (metadata.preprocessing.resize, metadata.preprocessing.crop) == (32, 32)
    assert metadata.labels[0].label == "airplane"
    assert metadata.accuracy is None
    with pytest.raises(UnknownArchitecture, match="resnet2O"):
        random_model("resnet2O")


@pytest.mark.parametrize("name", ["resnet20", "plain56", "resnetv2_164"])
def test_activations_neither_fade_nor_overflow(name: str) -> None:
    """On images that the statistics are not of; in every block, and in logits that tell them apart."""
    model, metadata = random_model(name, 0)
    images = normalised(synthetic_images(4, 32, seed=9), metadata.preprocessing, torch.float64).float()
    with torch.no_grad():
        logits, taps = model.forward_taps(images)
    for block, tap in taps.items():
        assert float(tap.total.abs().max()) < FP16_MAX / 100, block
        assert 0.05 < float(tap.residual.pow(2).mean().sqrt()) < 50, block
    assert float(logits.std(0).mean()) > 0.02
    assert float(logits.abs().max()) < 100


def test_batchnorms_do_something() -> None:
    model, _ = random_model("resnet20", 3)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 19
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        for values in (norm.weight.detach(), norm.bias.detach(), norm.running_mean, norm.running_var):
            assert float(values.std()) > 0.01
        assert float(norm.running_var.min()) > 0
        assert norm.momentum == pytest.approx(0.1)
