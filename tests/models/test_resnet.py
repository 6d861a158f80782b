from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.blocks import ResidualBlock
from models.resnet import ResNet, build, describe_blocks
from models.shortcuts import pad, pad_after
from tests.support.networks import liven


def images(size: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def test_residual_is_read_before_the_addition_changes_it() -> None:
    """The regression: an in-place ReLU after the addition would overwrite what was read."""
    block = liven(build("resnet20")).get_submodule("stage1.1")  # identity shortcut
    assert isinstance(block, ResidualBlock)
    x = images(32)[:, :1].expand(-1, 16, -1, -1).contiguous()
    kept = x.clone()
    taps = block.taps(x)
    assert torch.equal(x, kept)
    assert torch.equal(taps.residual, block.branch(kept))
    assert torch.equal(taps.shortcut, kept)
    assert torch.equal(taps.total, taps.shortcut + taps.residual)
    assert (taps.total < 0).any()
    assert torch.equal(taps.output, taps.total.clamp(min=0))


@pytest.mark.parametrize("name", ["resnet20", "resnet18-64px"])
def test_taps_give_the_logits_of_forward(name: str) -> None:
    model = liven(build(name))
    with torch.inference_mode():
        logits, taps = model.forward_taps(images(32))
        assert torch.equal(logits, model(images(32)))
    assert list(taps) == [name for name, _ in model.named_blocks()]


def test_a_closed_gate_leaves_the_shortcut_and_spares_the_other_rows() -> None:
    model = liven(build("resnet20"))
    gates = torch.ones(2, 9)
    gates[0, 3] = 0  # stage2.0, whose shortcut pads
    with torch.inference_mode():
        plain, _ = model.forward_taps(images(32))
        gated, taps = model.forward_taps(images(32), gates)
    assert torch.equal(taps["stage2.0"].total[0], taps["stage2.0"].shortcut[0])
    assert not torch.allclose(gated[0], plain[0])
    assert torch.equal(gated[1], plain[1])


def test_pad_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    x = images(4)
    y = pad(3, 7, 2, True)(x)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 5:].any()
    assert torch.equal(pad_after(3, 7, 2, True)(x)[:, :3], x[:, :, ::2, ::2])


def test_stride_is_on_the_three_by_three() -> None:
    block = build("resnet50").get_submodule("stage2.0")
    assert block.branch.conv1.stride == (1, 1)
    assert block.branch.conv2.stride == (2, 2)


def test_he_initialisation_and_zero_branch() -> None:
    model = build("resnet18", zero_init_branch=True)
    weight = model.get_submodule("stage3.1.branch.conv2").weight
    fan_out = weight.shape[0] * 9
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    with torch.inference_mode():
        _, taps = model.eval().forward_taps(images(64))
    assert all(not tap.residual.any() for tap in taps.values())


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (build("resnet20", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_recomputing_blocks_changes_no_gradient_and_no_statistic() -> None:
    gradients, statistics = [], []
    for recompute in (False, True):
        model = build("resnet20").train()
        model.checkpoint_blocks = recompute
        model(images(32)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        statistics.append([buffer.clone() for buffer in model.buffers()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*statistics, strict=True))


@pytest.mark.parametrize(
    ("name", "size", "strides", "last_shape"),
    [
        ("resnet50", 224, (4, 8, 16, 32), (2048, 7, 7)),
        ("resnet20", 32, (1, 2, 4), (64, 8, 8)),
        ("resnet18-64px", 64, (2, 4, 8, 16), (256, 4, 4)),
    ],
)
def test_blocks_are_described(
    name: str, size: int, strides: tuple[int, ...], last_shape: tuple[int, ...]
) -> None:
    model = build(name)
    blocks = describe_blocks(model, size)
    assert model.training
    assert tuple(dict.fromkeys(block.stride for block in blocks)) == strides
    assert blocks[-1].shape == last_shape
    assert {block.receptive_field.center0 for block in blocks} == {0.0}


@pytest.mark.parametrize("name", ["resnet20", "resnet18-64px"])
def test_receptive_field_is_what_the_gradient_reaches(name: str) -> None:
    """All weights positive and no ReLU cuts: the input gradient of one cell covers exactly its field."""
    model = build(name)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1e-3)
    size, index = 161, 4  # resnet20: stage2.1; resnet18-64px: stage3.0
    block = describe_blocks(model.eval(), size)[index]
    x = torch.full((1, 3, size, size), 1.0, requires_grad=True)
    _, taps = model.forward_taps(x)
    output = taps[block.name].output
    cell = output.shape[2] // 2
    output[0, :, cell, cell].sum().backward()
    assert x.grad is not None
    reached = x.grad[0].sum(0).any(0).nonzero().flatten()
    center = block.receptive_field.center0 + cell * block.stride
    half = (block.receptive_field.size - 1) / 2
    assert (int(reached[0]), int(reached[-1])) == (center - half, center + half)


def test_stages_and_head_are_named_as_the_words_say() -> None:
    model = ResNet(build("resnet18").spec)
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "stem",
        "stage1",
        "stage2",
        "stage3",
        "stage4",
        "head",
    }
