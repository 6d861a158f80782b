"""Fuse BatchNorm into the convolutions before it. Pure: the model that comes in is left as it is.

It knows the order conv -> BatchNorm inside an `nn.Sequential`, nothing of architectures.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

ModelT = TypeVar("ModelT", bound=nn.Module)


@torch.no_grad()
def fuse_batchnorm(model: ModelT) -> ModelT:
    """A copy in evaluation mode in which every conv + BatchNorm pair is one convolution with bias.

    The fused weights are computed in float64: w' = w * gamma / sqrt(var + eps), and
    b' = beta - mean * gamma / sqrt(var + eps).
    """
    fused = copy.deepcopy(model).eval()
    for parent in list(fused.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential) and any(isinstance(m, nn.BatchNorm2d) for m in child):
                setattr(parent, name, _fuse_sequence(child))
    return fused


def _fuse_sequence(sequence: nn.Sequential) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = ""
    for name, layer in sequence.named_children():
        before = layers.get(last)
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            dtype = before.weight.dtype
            layers[last] = fuse_conv_bn_eval(before.double(), layer.double()).to(dtype)
        else:
            layers[name] = layer
            last = name
    return nn.Sequential(layers)
