"""The contribution of each block to the logit of one class, as a forward computation without autograd.

Freeze the masks of the ReLUs on the path of the shortcuts. Then the logit is linear in the branches: its
gradient goes back along the shortcuts only, and a block contributes this gradient times its F. The gradient
is written out as forward operators, so any engine can run it.

logit = head's bias + contributions of all blocks + that of the stem + biases on the path, up to rounding.

All of this is float32 in every precision: a gradient spread over positions is below fp16's normal range.

Shapes: N batch, C channels, H W space, P positions of all blocks one after another (`manifest.map_slices`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from export.fuse import Affine
from export.reductions import active
from models.blocks import BlockTaps, ResidualBlock
from models.layers import PadChannels
from models.resnet import ResNet


class LayerTaps(NamedTuple):
    """A layer between stem and head, its input [N, C, H, W], and the parts of its output if it is a block."""

    layer: nn.Module
    entered: Tensor
    taps: BlockTaps | None


class Attributed(NamedTuple):
    """What adds up to the target's logit; the graph's outputs have these names.

    Attributes:
        contributions: maps, [N, P].
        constants: what stem, biases on the way and the head's bias add, [N, 3].
        channels: what each channel of each block adds, [N, the sum of C]; those of a block sum to its
            contribution.
    """

    contributions: Tensor
    constants: Tensor
    channels: Tensor


def attribute(model: ResNet, layers: Sequence[LayerTaps], target_N: Tensor) -> Attributed:
    """The parts of the target's logit.

    Args:
        layers: one forward pass of the fused `model`, its head linear.
    """
    head = model.head
    last = layers[-1].taps
    assert last is not None, "a network ends in a block"
    height, width = last.output.shape[2:]
    weight_NC = head.weight.index_select(0, target_N) / (height * width)
    gradient = weight_NC[:, :, None, None] * torch.ones(1, 1, height, width)
    gradient, biases_N = _back(model.postact, last.output, gradient)
    maps: list[Tensor] = []
    channels: list[Tensor] = []
    for layer, entered, taps in reversed(layers):
        way = layer
        if taps is not None:
            assert isinstance(layer, ResidualBlock)
            if layer.has_relu:
                gradient = gradient * active(taps.output)
            parts_NCHW = gradient * taps.residual.float()
            maps.append(parts_NCHW.sum(1).flatten(1))
            channels.append(parts_NCHW.sum((2, 3)))
            way = layer.way_of_shortcut()
        gradient, biases = _back(way, entered, gradient)
        biases_N = biases_N + biases
    stem_N = (gradient * layers[0].entered.float()).sum((1, 2, 3))
    head_N = head.bias.index_select(0, target_N)
    constants_N3 = torch.stack([stem_N, biases_N + 0 * head_N, head_N], 1)
    return Attributed(torch.cat(maps[::-1], 1), constants_N3, torch.cat(channels[::-1], 1))


def _back(layer: nn.Module, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient at a layer's input x, masks frozen, and what its constants add to the logit, [N].

    Raises:
        TypeError: no shortcut has a layer of this kind.
    """
    if isinstance(layer, nn.Sequential):
        children = list(layer)
        entered = [x]
        entered += [x := child(x) for child in children[:-1]]
        added = torch.zeros(1)
        for child, before in zip(reversed(children), reversed(entered), strict=True):
            gradient, constant_N = _back(child, before, gradient)
            added = added + constant_N
        return gradient, added
    for kind, back in BACK.items():
        if isinstance(layer, kind):
            return back(layer, x, gradient)
    raise TypeError(f"{type(layer).__name__} is no layer of a shortcut")


def _back_through_conv(conv: nn.Conv2d, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Transpose a 1x1 convolution: swap the axes of its weight, then put zeros between the cells."""
    assert conv.kernel_size == (1, 1)
    added = torch.zeros(1) if conv.bias is None else (gradient.sum((2, 3)) * conv.bias.float()).sum(1)
    gradient = F.conv2d(gradient, conv.weight.float().transpose(0, 1))
    return _spread(gradient, conv.stride[0], x, fill=False), added


def _back_through_pool(pool: nn.AvgPool2d, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Give each pixel of a window its share; windows at the edge may have fewer pixels."""
    stride = pool.kernel_size
    assert isinstance(stride, int)
    assert stride == pool.stride
    rows, columns = (
        torch.tensor([min(stride, pixels - stride * cell) for cell in range(cells)])
        for pixels, cells in zip(x.shape[2:], gradient.shape[2:], strict=True)
    )
    return _spread(gradient / (rows[:, None] * columns), stride, x, fill=True), torch.zeros(1)


def _back_through_affine(affine: Affine, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return gradient * affine.scale.float(), (gradient * affine.shift.float()).sum((1, 2, 3))


def _back_through_relu(relu: nn.ReLU, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    return gradient * active(x), torch.zeros(1)


def _back_through_pad(pad: PadChannels, x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    kept = gradient[:, pad.before : gradient.shape[1] - pad.after]
    return _spread(kept, pad.stride, x, fill=False), torch.zeros(1)


def _spread(gradient: Tensor, stride: int, like: Tensor, fill: bool) -> Tensor:
    """Copy each cell to stride x stride pixels, or to the first one only, and cut to the size of `like`."""
    if stride == 1:
        return gradient
    for axis in (2, 3):
        others = [gradient if fill else 0 * gradient] * (stride - 1)
        gradient = torch.stack([gradient, *others], axis + 1).flatten(axis, axis + 1)
    gradient = gradient[:, :, : like.shape[2], : like.shape[3]]
    lacking = (0, like.shape[3] - gradient.shape[3], 0, like.shape[2] - gradient.shape[2])
    return F.pad(gradient, lacking) if any(lacking) else gradient


Back = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]
BACK: dict[type[nn.Module], Back] = {
    nn.Identity: lambda layer, x, gradient: (gradient, torch.zeros(1)),
    nn.Conv2d: _back_through_conv,
    nn.AvgPool2d: _back_through_pool,
    Affine: _back_through_affine,
    nn.ReLU: _back_through_relu,
    PadChannels: _back_through_pad,
}
