"""Fuse BatchNorm into the convolutions before it. Pure: the given model stays as it is.

The module knows the order conv, BatchNorm inside an `nn.Sequential`, and nothing of architectures. A
BatchNorm after something else (an addition, in pre-activation networks) becomes a multiplication and an
addition.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.layers import StochasticDepth

ModelT = TypeVar("ModelT", bound=nn.Module)
_REPLACED = (nn.BatchNorm2d, nn.Dropout, StochasticDepth)


class Affine(nn.Module):
    """A BatchNorm in evaluation mode: scale * x + shift for every channel."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        shift = norm.bias.double() - norm.running_mean.double() * scale
        dtype = norm.weight.dtype
        self.scale = nn.Parameter(scale.to(dtype).reshape(-1, 1, 1))
        self.shift = nn.Parameter(shift.to(dtype).reshape(-1, 1, 1))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW * self.scale + self.shift


@torch.no_grad()
def fuse_batchnorm(model: ModelT) -> ModelT:
    """Return a copy in evaluation mode in which each conv + BatchNorm pair is one convolution with bias.

    Dropout and stochastic depth, which only training uses, are removed.

    The fused weights are computed in float64: w' = w * gamma / sqrt(var + eps), and
    b' = beta - mean * gamma / sqrt(var + eps).
    """
    fused = copy.deepcopy(model).eval()
    for parent in list(fused.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and any(isinstance(m, _REPLACED) for m in child):
                setattr(parent, name, _fuse_sequence(child))
    return fused


def _fuse_sequence(sequence: nn.Sequential) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = ""
    for name, layer in sequence.named_children():
        before = layers.get(last)
        if isinstance(layer, nn.Dropout | StochasticDepth):
            continue
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            dtype = before.weight.dtype
            layers[last] = fuse_conv_bn_eval(before.double(), layer.double()).to(dtype)
        else:
            layers[name] = Affine(layer) if isinstance(layer, nn.BatchNorm2d) else layer
            last = name
    return nn.Sequential(layers)
