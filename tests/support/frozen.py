"""What a block adds to a logit, and what a network says without a block, by other means than ours.

On the unfused network in float64: contributions by autograd, through a copy in which masks and branches are
frozen, and lesions by taking a block's branch out of a copy.

Shapes: N batch, C channels, H W space, K classes, L blocks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.blocks import HighwayBlock, PreActivationBlock, ResidualBlock
from models.resnet import ResNet
from models.shortcuts import Projection

SMALL: dict[str, object] = {"width": 8, "num_classes": 10}
# Every way that a shortcut can go, behind every stem; branches and depths as small as they can be.
ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "basic": ("resnet18", {"depths": (2, 1, 1), **SMALL}),
    "bottleneck": ("resnet50", {"depths": (1, 2), "stem": "3x3/2", **SMALL}),
    "D": ("resnet26d", {"depths": (1, 1, 1), **SMALL}),
    "SE": ("seresnet18", {"depths": (1, 1), "stem": "3x3/pool", **SMALL}),
    "ResNeXt": ("resnext50_32x4d", {"depths": (1, 1), "cardinality": 4, **SMALL}),
    "wide": ("wide_resnet50_2", {"depths": (1, 1), "group_width": 16, **SMALL}),
    "option A": ("resnet20", {"depths": (1, 1, 1)}),
    "option A, zeros after": ("resnet20", {"depths": (1, 1, 1), "shortcut": "pad-after"}),
    "option C": ("resnet18", {"depths": (2, 2), "shortcut": "projection-all", **SMALL}),
    "v2": ("resnetv2_50", {"depths": (1, 2), **SMALL}),
    "v2, option A": ("resnetv2_110", {"depths": (1, 1, 1)}),
    "v2, CIFAR": ("resnetv2_164", {"depths": (1, 1, 1)}),
    "wide, CIFAR": ("wrn16_4", {"depths": (1, 2)}),
    "dense": ("densenet_bc100_k12", {"depths": (2, 2, 2), "num_classes": 10}),
}


@dataclass(frozen=True)
class Attribution:
    """Of each image's target: its logit, and gradient times value of what adds up to it.

    `residuals` and `shortcuts` are maps [N, H, W], one a block; the constants are those of
    `manifest.CONSTANTS`; `cam` [N, H, W] is the class activation map, over the number of its positions.
    """

    logit_N: Tensor
    residuals: list[Tensor]
    shortcuts: list[Tensor]
    constants_N3: Tensor
    cam: Tensor


class FrozenReLU(nn.Module):
    """Multiplies by the mask of the first tensor that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_NCHW: Tensor | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.mask_NCHW is None:
            self.mask_NCHW = (x_NCHW > 0).to(x_NCHW.dtype)
        return x_NCHW * self.mask_NCHW


class FrozenNetwork:
    """The network as an affine function of what stem and branches gave for some images."""

    def __init__(self, model: ResNet, x_NCHW: Tensor, gates_NL: Tensor) -> None:
        self.model = copy.deepcopy(model).double().eval()
        with torch.no_grad():
            self.logits_NK, taps = self.model.forward_taps(x_NCHW, gates_NL)
            stem_NCHW = self.model.stem(x_NCHW)
        self.output_NCHW = list(taps.values())[-1].output
        self.leaves = [
            t.clone().requires_grad_() for t in (stem_NCHW, *(tap.residual for tap in taps.values()))
        ]
        _freeze(self.model.postact)
        self.after: dict[str, nn.Module] = {}  # what follows a block's addition
        for name, layer in self.model.named_layers():
            if isinstance(layer, ResidualBlock):
                self.after[name] = nn.Identity() if isinstance(layer, PreActivationBlock) else FrozenReLU()
                if isinstance(layer, PreActivationBlock):
                    _freeze(layer.preact)
            else:
                _freeze(layer)

    def __call__(self, leaves: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Logits [N, K] and every block's shortcut, from a stem's output and every block's F."""
        x, shortcuts = leaves[0], []
        for name, layer in self.model.named_layers():
            if not isinstance(layer, ResidualBlock):
                x = layer(x)
                continue
            if isinstance(layer, PreActivationBlock) and isinstance(layer.shortcut, Projection):
                x = layer.preact(x)
            shortcuts.append(layer.shortcut(x))
            x = self.after[name](shortcuts[-1] + leaves[len(shortcuts)])
        return self.model.pool_and_head(x), shortcuts

    def attribute(self, target_N: Tensor) -> Attribution:
        """By autograd; biases on the shortcuts' way are what is left where stem and branches give 0."""
        logits_NK, shortcuts = self(self.leaves)
        assert torch.allclose(logits_NK, self.logits_NK, rtol=0, atol=1e-12), "freezing moved the logits"
        logit_N = logits_NK.gather(1, target_N[:, None])[:, 0]
        gradients = torch.autograd.grad(logit_N.sum(), [*self.leaves, *shortcuts])
        values = [*self.leaves, *shortcuts]
        parts = [
            (gradient * value).detach().sum(1) for gradient, value in zip(gradients, values, strict=True)
        ]
        with torch.no_grad():
            nothing, _ = self([torch.zeros_like(leaf) for leaf in self.leaves])
            head = self.model.head
            bias_N = head.bias[target_N]
            pooled_NCHW = self.model.postact(self.output_NCHW)
            cam = torch.einsum("nc,nchw->nhw", head.weight[target_N], pooled_NCHW)
        num_blocks = len(shortcuts)
        constants = [parts[0].sum((1, 2)), nothing.gather(1, target_N[:, None])[:, 0] - bias_N, bias_N]
        return Attribution(
            logit_N=logit_N.detach(),
            residuals=parts[1 : num_blocks + 1],
            shortcuts=parts[num_blocks + 1 :],
            constants_N3=torch.stack(constants, 1),
            cam=cam / pooled_NCHW[0, 0].numel(),
        )


def _freeze(layers: nn.Module) -> None:
    for name, child in list(layers.named_children()):
        if isinstance(child, nn.ReLU):
            setattr(layers, name, FrozenReLU())


def without_branch(model: ResNet, name: str) -> ResNet:
    """A copy in which the block `name` is nothing but its shortcut, and the ReLU after it in v1."""
    model = copy.deepcopy(model)
    block = model.get_submodule(name)
    assert isinstance(block, ResidualBlock)
    way: nn.Module = block.shortcut
    if isinstance(block, HighwayBlock):
        way = _Carried(block.transform, block.shortcut)
    elif isinstance(block, PreActivationBlock):
        way = nn.Sequential(block.preact, way) if isinstance(way, Projection) else way
    else:
        way = nn.Sequential(way, nn.ReLU())
    stage, _, index = name.partition(".")
    setattr(model.get_submodule(stage), index, way)
    return model


class _Carried(nn.Module):
    def __init__(self, transform: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.transform, self.shortcut = transform, shortcut

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return (1 - torch.sigmoid(self.transform(x_NCHW))) * self.shortcut(x_NCHW)
