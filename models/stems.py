"""The stem, which maps the image to the first stage's channels, and a DenseNet's transitions between stages.

A new kind of stem is a row of STEMS.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from models.layers import conv
from models.zoo import Architecture


class StemKind(NamedTuple):
    """Kernel and stride of each convolution, and whether a 3x3 max pool of stride 2 follows."""

    convs: tuple[tuple[int, int], ...]
    pool: bool = False


STEMS: dict[str, StemKind] = {
    "imagenet": StemKind(((7, 2),), pool=True),
    "deep": StemKind(((3, 2), (3, 1), (3, 1)), pool=True),  # ResNet-C and -D, arXiv 1812.01187
    "3x3": StemKind(((3, 1),)),  # images of 32 pixels
    "3x3/2": StemKind(((3, 2),)),  # of about 64
    "3x3/pool": StemKind(((3, 1),), pool=True),  # torchvision's networks with a smaller first kernel
}


def make_stem(spec: Architecture) -> nn.Sequential:
    """Return the stem; in v2 its last BatchNorm and ReLU belong to the first block."""
    kernels = STEMS[spec.stem]
    width = spec.stem_width or spec.width
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for number, (kernel, stride) in enumerate(kernels.convs, start=1):
        last = number == len(kernels.convs)
        suffix = "" if len(kernels.convs) == 1 else str(number)
        out_channels = width if last else width // 2
        layers[f"conv{suffix}"] = conv(channels, out_channels, kernel, stride)
        if not last or spec.variant != "v2":
            layers[f"norm{suffix}"] = nn.BatchNorm2d(out_channels)
            layers[f"relu{suffix}"] = nn.ReLU(inplace=True)
        channels = out_channels
    if kernels.pool:
        layers["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(layers)


def transition(channels: int) -> nn.Sequential:
    """Return what stands between the stages of a DenseNet-BC: it halves the channels and the size."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=conv(channels, channels // 2, 1),
            pool=nn.AvgPool2d(2),
        )
    )
