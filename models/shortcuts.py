"""Shortcuts where a block changes the shape of its input; elsewhere a shortcut is the identity.

A projection includes its BatchNorm. A new kind of shortcut is a function and a row of SHORTCUTS.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from models.layers import PadChannels


class Projection(nn.Sequential):
    """Option B: a 1x1 convolution with the block's stride and, where the branch ends in one, a BatchNorm.

    `pooled`: an average pool takes the stride, so that no pixel goes unseen (ResNet-D, arXiv 1812.01187).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, has_norm: bool = True, pooled: bool = False
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if pooled and stride > 1:
            layers["pool"] = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            stride = 1
        layers["conv"] = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        if has_norm:
            layers["norm"] = nn.BatchNorm2d(out_channels)
        super().__init__(layers)


def pad(in_channels: int, out_channels: int, stride: int, has_norm: bool) -> nn.Module:
    """Option A, half of the zeros before the old channels and half after, as in most PyTorch code for CIFAR.

    He et al. 2016, section 4.2, leaves open where the zeros go.
    """
    before = (out_channels - in_channels) // 2
    return PadChannels(before, out_channels - in_channels - before, stride)


def pad_after(in_channels: int, out_channels: int, stride: int, has_norm: bool) -> nn.Module:
    """Option A, all zeros after the old channels, as in the authors' code in Torch."""
    return PadChannels(0, out_channels - in_channels, stride)


def pooled_projection(in_channels: int, out_channels: int, stride: int, has_norm: bool) -> nn.Module:
    return Projection(in_channels, out_channels, stride, has_norm, pooled=True)


# "projection-all" is used in every block, the others only where a block changes the shape.
SHORTCUTS: dict[str, Callable[[int, int, int, bool], nn.Module]] = {
    "pad": pad,  # option A
    "pad-after": pad_after,
    "projection": Projection,  # option B
    "projection-all": Projection,  # option C: every shortcut projects
    "pooled-projection": pooled_projection,  # ResNet-D
}
