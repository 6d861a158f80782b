"""The layers that branches, shortcuts and stems are made of, apart from those of torch.

Shapes: N batch, C channels, H W space.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)))


class PadChannels(nn.Module):
    """Take every stride-th pixel, and add channels of zeros before and after those of x; no parameters."""

    def __init__(self, before: int = 0, after: int = 0, stride: int = 1) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_NCHW, (0, 0, 0, 0, self.before, self.after))


def hidden_channels(channels: int, reduction: int, round_to: int) -> int:
    """Return 1 / `reduction` of the channels, rounded to a multiple of `round_to` that is not 0."""
    return max(round_to, (channels // reduction + round_to // 2) // round_to * round_to)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate, computed from all channels' means (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, reduction: int, round_to: int = 1) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction, round_to)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        squeezed = F.relu(self.reduce(x_NCHW.mean((2, 3), keepdim=True)))
        return x_NCHW * torch.sigmoid(self.expand(squeezed))


class StochasticDepth(nn.Module):
    """While training, drop the branch for some images of a batch (Huang et al. 2016, arXiv 1603.09382).

    Branches that are kept are divided by the probability to keep them, so that evaluation needs no change.
    """

    def __init__(self, drop_probability: float) -> None:
        super().__init__()
        self.drop_probability = drop_probability

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return x_NCHW
        keep = 1 - self.drop_probability
        return x_NCHW * x_NCHW.new_empty(len(x_NCHW), 1, 1, 1).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        return f"drop_probability={self.drop_probability}"
