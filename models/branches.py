"""Residual branches F: which convolutions a block's branch has, and what stands between them.

A branch ends where the addition reads it. A new kind of branch is a function and a row of BRANCHES.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from models.layers import PadChannels, SqueezeExcitation, conv
from models.zoo import Architecture


def basic_convs(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """Return two 3x3 convolutions with `width` output channels."""
    return [conv(in_channels, width, 3, stride), conv(width, width, 3)]


def bottleneck_convs(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """Return 1x1, 3x3, 1x1 with 4 * `width` output channels; the stride is on the 3x3 (v1.5).

    In the first stage the 3x3 has `cardinality` groups of `group_width` channels, and the channels double
    with every stage. Wide networks (arXiv 1605.07146) and ResNeXt (arXiv 1611.05431) differ in these numbers.
    """
    inner = spec.cardinality * (spec.group_width or spec.width) * width // spec.width
    return [
        conv(in_channels, inner, 1),
        conv(inner, inner, 3, stride, spec.cardinality),
        conv(inner, 4 * width, 1),
    ]


def single_conv(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """Return one 3x3 convolution: a VGG's layer."""
    return [conv(in_channels, width, 3)]


def dense_convs(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """Return 1x1 to four times the growth rate `width`, 3x3 to `width` (DenseNet-BC, arXiv 1608.06993)."""
    return [conv(in_channels, 4 * width, 1), conv(4 * width, width, 3)]


class BranchKind(NamedTuple):
    """A branch's convolutions, and a block's output channels by its input channels and width."""

    convs: Callable[[Architecture, int, int, int], list[nn.Conv2d]]
    out_channels: Callable[[int, int], int]


BRANCHES: dict[str, BranchKind] = {
    "basic": BranchKind(basic_convs, lambda in_channels, width: width),
    "bottleneck": BranchKind(bottleneck_convs, lambda in_channels, width: 4 * width),
    "conv": BranchKind(single_conv, lambda in_channels, width: width),
    "dense": BranchKind(dense_convs, lambda in_channels, width: in_channels + width),
}


def make_branch(
    spec: Architecture, in_channels: int, width: int, stride: int, hidden: tuple[int, ...] | None = None
) -> nn.Sequential:
    """Return conv-BN-ReLU-...-conv-BN; in v2 the last BatchNorm belongs to the next block.

    Dropout, where the row has it, is before the last convolution (arXiv 1605.07146, section 2.4), and
    squeeze-and-excitation at the end (arXiv 1709.01507). `hidden`: the block's row of `Architecture.hidden`.
    """
    kind = BRANCHES[spec.branch]
    convs = kind.convs(spec, in_channels, width, stride)
    if hidden is not None:
        convs = narrowed(convs, hidden)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if spec.branch == "conv" and stride > 1:
        layers["pool"] = nn.MaxPool2d(stride)
    for number, layer in enumerate(convs, start=1):
        if number == len(convs) and spec.dropout:
            layers["dropout"] = nn.Dropout(spec.dropout)
        layers[f"conv{number}"] = layer
        if number < len(convs) or spec.variant != "v2":
            layers[f"norm{number}"] = nn.BatchNorm2d(layer.out_channels)
        if number < len(convs):
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
    if spec.se_reduction is not None:
        layers["se"] = SqueezeExcitation(convs[-1].out_channels, spec.se_reduction, spec.se_round_to)
    if spec.branch == "dense":
        layers["pad"] = PadChannels(before=in_channels)
    return nn.Sequential(layers)


def narrowed(convs: list[nn.Conv2d], hidden: tuple[int, ...]) -> list[nn.Conv2d]:
    """Return the same convolutions with `hidden` channels between them; groups keep their channels."""
    ends = (convs[0].in_channels, *hidden, convs[-1].out_channels)
    return [
        conv(
            channels,
            out_channels,
            layer.kernel_size[0],
            layer.stride[0],
            1 if layer.groups == 1 else channels * layer.groups // layer.in_channels,
        )
        for layer, channels, out_channels in zip(convs, ends[:-1], ends[1:], strict=True)
    ]
