"""Variants, shortcuts and branches, each held against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import SqueezeExcitation, StochasticDepth
from models.resnet import ResNet, build, shortcut_kind
from models.shortcuts import Projection
from tests.support.networks import liven


def x_of(block: nn.Module, channels: int, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, size, size, generator=generator)


def test_pre_activation_leaves_the_identity_alone() -> None:
    block = liven(build("resnetv2_110")).get_submodule("stage1.1")
    x = x_of(block, 16)
    h = F.relu(block.preact.norm(x))
    h = F.relu(block.branch.norm1(block.branch.conv1(h)))
    assert torch.allclose(block(x), x + block.branch.conv2(h), atol=1e-6)
    taps = block.taps(x)
    assert taps.shortcut is x
    assert taps.output is taps.total


def test_a_projection_takes_the_pre_activation() -> None:
    block = liven(build("resnetv2_164")).get_submodule("stage2.0")
    x = x_of(block, 64)
    assert torch.equal(block.taps(x).shortcut, block.shortcut.conv(F.relu(block.preact.norm(x))))
    assert not hasattr(block.shortcut, "norm")


def test_a_plain_block_is_its_branch() -> None:
    block = liven(build("plain20")).get_submodule("stage2.0")
    x = x_of(block, 16)
    taps = block.taps(x)
    assert taps.shortcut is None
    assert taps.total is taps.residual
    assert torch.equal(block(x), F.relu(block.branch(x)))


def test_a_highway_carries_what_it_does_not_transform() -> None:
    model = build("highway20")
    block = liven(model).get_submodule("stage1.1")
    x = x_of(block, 16)
    transform = torch.sigmoid(block.transform.conv(x))
    taps = block.taps(x)
    assert torch.allclose(taps.shortcut, (1 - transform) * x)
    assert torch.allclose(taps.total, transform * block.branch(x) + (1 - transform) * x)
    assert taps.output is taps.total
    assert block.transform.conv.bias.unique().item() == -2


def test_a_dense_layer_adds_new_channels() -> None:
    """shortcut + residual is the concatenation of x and the new channels."""
    block = liven(build("densenet_bc100_k12")).get_submodule("stage1.2")
    x = x_of(block, 48)
    y = block(x)
    assert torch.equal(y[:, :48], x)
    assert y.shape[1] == 60
    assert y[:, 48:].any()
    assert not block.taps(x).residual[:, :48].any()


@pytest.mark.parametrize(
    ("shortcut", "kinds"),
    [
        ("pad", ["identity", "identity", "pad", "identity", "pad", "identity"]),  # option A
        ("projection", ["identity", "identity", "projection", "identity", "projection", "identity"]),  # B
        ("projection-all", ["projection"] * 6),  # C
    ],
)
def test_shortcut_options(shortcut: str, kinds: list[str]) -> None:
    model = build("resnet20", depths=(2, 2, 2), shortcut=shortcut)
    assert [shortcut_kind(block) for _, block in model.named_blocks()] == kinds


def test_a_pooled_shortcut_sees_every_pixel() -> None:
    """The bags-of-tricks argument: a strided 1x1 ignores three quarters of its input."""
    for pooled, share in ((True, 1.0), (False, 0.25)):
        x = torch.rand(1, 4, 8, 8, requires_grad=True)
        Projection(4, 8, 2, pooled=pooled).eval()(x).sum().backward()
        assert (x.grad != 0).float().mean().item() == share


def test_squeeze_and_excitation_scales_channels() -> None:
    layer = SqueezeExcitation(32, reduction=16, round_to=8)
    assert layer.reduce.out_channels == 8
    assert SqueezeExcitation(32, reduction=16).reduce.out_channels == 2
    x = torch.rand(2, 32, 4, 4) + 1
    gates = layer(x) / x
    assert torch.allclose(gates.amax((2, 3)), gates.amin((2, 3)))
    assert ((gates > 0) & (gates < 1)).all()


def test_stochastic_depth_drops_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25)
    x = torch.ones(4000, 1, 2, 2)
    y = layer(x)
    assert torch.allclose(y.unique(), torch.tensor([0, 4 / 3]))
    assert (y.amax((1, 2, 3)) == y.amin((1, 2, 3))).all()
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    assert layer.eval()(x) is x


def test_stochastic_depth_rises_with_depth_and_wide_branches_drop_out() -> None:
    model = build("wrn16_4", stochastic_depth=0.6)
    blocks = [block for _, block in model.named_blocks()]
    drops = [block.branch.drop.drop_probability for block in blocks]
    assert drops == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert [name for name, _ in blocks[1].branch.named_children()] == [
        *("conv1", "norm1", "relu1", "dropout", "conv2", "drop")
    ]


@pytest.mark.parametrize(
    ("initialisation", "variance"),
    [("he-fan-in", 2 / (64 * 9)), ("he-fan-out", 2 / (128 * 9)), ("xavier", 2 / ((64 + 128) * 9))],
)
def test_initialisations(initialisation: str, variance: float) -> None:
    weight = build("resnet18", initialisation=initialisation).get_submodule("stage2.0.branch.conv1").weight
    assert weight.var().item() == pytest.approx(variance, rel=0.02)


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "seresnet50", "highway20"])
def test_a_zeroed_branch_is_silent_and_can_learn(name: str) -> None:
    model = build(name, zero_init_branch=True, depths=(1, 1, 1), width=8, stem_width=8).train()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits, taps = model.forward_taps(x)
    assert not any(tap.residual.any() for tap in taps.values())
    logits.square().sum().backward()
    for _, block in model.named_blocks():
        assert any(p.grad is not None and p.grad.any() for p in block.branch.parameters())


def test_plain_networks_are_never_zeroed() -> None:
    model: ResNet = build("plain20", zero_init_branch=True)
    assert model.eval()(torch.ones(1, 3, 32, 32)).any()
    assert all(norm.weight.all() for norm in model.modules() if isinstance(norm, nn.BatchNorm2d))
