"""The building blocks of every variant: merge(shortcut(x), branch(x)), with the two paths apart.

A branch ends in its last BatchNorm, a shortcut includes its projection's BatchNorm, and nothing
touches either before they are added. So F(x) and s(x) are read where they are made: no hooks.

Shapes: N batch, C channels, H W space.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class BlockTaps(NamedTuple):
    """What a block made, each [N, C, H, W]: total = shortcut + residual, output = ReLU(total)."""

    residual: Tensor
    shortcut: Tensor
    total: Tensor
    output: Tensor


class ResidualBlock(nn.Module):
    """One residual block of v1: ReLU(shortcut(x) + branch(x)), He et al. 2016 (arXiv 1512.03385)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def merge(self, shortcut: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The sum u = s + F, and the block's output. Not in place: u is an answer of its own."""
        total = shortcut + residual
        return total, F.relu(total)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.merge(self.shortcut(x_NCHW), self.branch(x_NCHW))[1]

    def taps(self, x_NCHW: Tensor, gate_N111: Tensor | None = None) -> BlockTaps:
        """The same block with its parts kept apart; `gate` [N, 1, 1, 1] scales the branch."""
        residual = self.branch(x_NCHW)
        if gate_N111 is not None:
            residual = gate_N111 * residual
        shortcut = self.shortcut(x_NCHW)
        return BlockTaps(residual, shortcut, *self.merge(shortcut, residual))


class Projection(nn.Sequential):
    """Shortcut of option B: a 1x1 convolution with the block's stride, and its BatchNorm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                norm=nn.BatchNorm2d(out_channels),
            )
        )


class PadShortcut(nn.Module):
    """Shortcut of option A: every stride-th pixel, and zeros for the new channels; no parameters.

    He et al. 2016, section 4.2, which leaves open where the zeros go: half before the old channels and half
    after (most PyTorch code for CIFAR), or all after (Torch's own code).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, centered: bool = True) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2 if centered else 0
        self.after = out_channels - in_channels - self.before

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_NCHW, (0, 0, 0, 0, self.before, self.after))


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


def basic_branch(in_channels: int, width: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions: conv-BN-ReLU-conv-BN, `width` channels out."""
    return nn.Sequential(
        OrderedDict(
            conv1=conv(in_channels, width, 3, stride),
            norm1=nn.BatchNorm2d(width),
            relu1=nn.ReLU(inplace=True),
            conv2=conv(width, width, 3),
            norm2=nn.BatchNorm2d(width),
        )
    )


def bottleneck_branch(in_channels: int, width: int, stride: int) -> nn.Sequential:
    """1x1, 3x3, 1x1 with 4 * `width` channels out; the stride is on the 3x3 (v1.5)."""
    return nn.Sequential(
        OrderedDict(
            conv1=conv(in_channels, width, 1),
            norm1=nn.BatchNorm2d(width),
            relu1=nn.ReLU(inplace=True),
            conv2=conv(width, width, 3, stride),
            norm2=nn.BatchNorm2d(width),
            relu2=nn.ReLU(inplace=True),
            conv3=conv(width, 4 * width, 1),
            norm3=nn.BatchNorm2d(4 * width),
        )
    )


class BranchKind(NamedTuple):
    """How to make a branch, and how many channels it gives for each of its width."""

    make: Callable[[int, int, int], nn.Sequential]
    expansion: int


BRANCHES: dict[str, BranchKind] = {
    "basic": BranchKind(basic_branch, expansion=1),
    "bottleneck": BranchKind(bottleneck_branch, expansion=4),
}

# Used only where the shape changes; elsewhere a shortcut is the identity.
SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "projection": Projection,
    "pad": PadShortcut,
    "pad-after": partial(PadShortcut, centered=False),
}


def imagenet_stem(width: int) -> nn.Sequential:
    """7x7 convolution of stride 2 and a 3x3 max pool of stride 2: a quarter of the size."""
    return nn.Sequential(
        OrderedDict(
            conv=conv(3, width, 7, 2),
            norm=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(3, 2, 1),
        )
    )


def small_stem(width: int, stride: int) -> nn.Sequential:
    """One 3x3 convolution, for images of 32 pixels (stride 1) or about 64 (stride 2)."""
    return nn.Sequential(
        OrderedDict(conv=conv(3, width, 3, stride), norm=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True))
    )


STEMS: dict[str, Callable[[int], nn.Sequential]] = {
    "imagenet": imagenet_stem,
    "3x3": lambda width: small_stem(width, 1),
    "3x3/2": lambda width: small_stem(width, 2),
}
