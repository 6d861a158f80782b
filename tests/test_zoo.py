"""Every row of the zoo: it builds, counts as published, trains a step and fuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from export.fuse import fuse_batchnorm
from export.verify import source_input, synthetic_images
from models.resnet import ResNet, build
from models.zoo import ZOO, UnknownArchitecture, architecture
from tests.conftest import liven, metadata_for

SMALL = {name: 64 if row.stem == "imagenet" else 32 for name, row in ZOO.items()}


@pytest.mark.parametrize("name", ZOO)
def test_parameters_as_published(name: str) -> None:
    row = ZOO[name]
    with torch.device("meta"):
        count = sum(p.numel() for p in ResNet(row).parameters())
    assert row.num_parameters is None or count == row.num_parameters


@pytest.mark.parametrize("name", ZOO)
def test_a_step_moves_every_parameter(name: str) -> None:
    model = build(name, num_classes=7, width=8)
    x = torch.randn(2, 3, SMALL[name], SMALL[name], generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(x), torch.tensor([1, 4])).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("name", ZOO)
def test_fused_network_gives_the_same_logits_and_leaves_the_source(name: str) -> None:
    model = liven(build(name, num_classes=10, width=8)).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = source_input(synthetic_images(2, SMALL[name], seed=0), metadata_for(model).preprocessing)
    fused = fuse_batchnorm(model)
    with torch.inference_mode():
        assert torch.allclose(fused(x), model(x), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownArchitecture, match=r"did you mean .*resnet50"):
        architecture("resnet5o")
