"""Parameters and multiply-accumulates of an architecture, counted on the network itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.resnet import ResNet
from models.zoo import Architecture


class Cost(NamedTuple):
    """The cost of one image of the row's `input_size`; convolutions and the head count, as in the papers."""

    num_parameters: int
    num_macs: int


def count(spec: Architecture) -> Cost:
    """Return the cost of an architecture; only shapes are computed, no weights and no activations."""
    with torch.device("meta"), torch.inference_mode():
        model = ResNet(spec).eval()
        x_NCHW = torch.empty(1, 3, spec.input_size, spec.input_size)
        num_macs, x_NCHW = _run(model.stem, x_NCHW)
        # Deep networks repeat the same few blocks: each kind is run once.
        known: dict[tuple[str, torch.Size], tuple[int, Tensor]] = {}
        for _, layer in model.named_layers():
            kind = (repr(layer), x_NCHW.shape)
            if kind not in known:
                known[kind] = _run(layer, x_NCHW)
            num_macs += known[kind][0]
            x_NCHW = known[kind][1]
    num_macs += model.head.weight.numel()
    return Cost(sum(parameter.numel() for parameter in model.parameters()), num_macs)


def _run(layers: nn.Module, x_NCHW: Tensor) -> tuple[int, Tensor]:
    """Return the multiply-accumulates of all convolutions in `layers`, and the output."""
    num_macs = 0

    def add(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal num_macs
        num_macs += output.numel() * layer.weight[0].numel()

    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(add)
    output = layers(x_NCHW)
    return num_macs, output
