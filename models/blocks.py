"""The blocks of every variant: merge(shortcut(x), branch(x)), with the two paths as separate modules.

A branch ends where the addition reads it, and a shortcut includes its projection's BatchNorm. Nothing lies
between either and the addition, so F(x) and s(x) are outputs of modules, and reading them needs no hooks.

A variant is a class of block, and a row of VARIANTS. Branches, shortcuts and stems have modules of their own.

Shapes: N batch, C channels, H W space.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.branches import BRANCHES, make_branch
from models.layers import StochasticDepth, norm_relu
from models.shortcuts import SHORTCUTS, Projection
from models.zoo import Architecture

# A highway block begins almost as its shortcut: sigmoid(-2) = 0.12 (Srivastava et al. 2015, section 3.1).
TRANSFORM_BIAS = -2.0


class BlockTaps(NamedTuple):
    """The parts of a block's output, each [N, C, H, W]: total = shortcut + residual. Plain: no shortcut."""

    residual: Tensor
    shortcut: Tensor | None
    total: Tensor
    output: Tensor


class ResidualBlock(nn.Module):
    """v1: ReLU(shortcut(x) + branch(x)), He et al. 2016 (arXiv 1512.03385)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, **entry: nn.Module) -> None:
        """`entry`: further modules that a variant applies to x, by the name of their attribute."""
        super().__init__()
        for name, module in entry.items():
            self.add_module(name, module)
        self.branch = branch
        self.shortcut = shortcut

    # Whether a ReLU follows the addition.
    has_relu = True

    def way_of_shortcut(self) -> nn.Module:
        """Return the path from x to s as one module; s is linear in x once the masks of ReLUs are frozen."""
        return self.shortcut

    def paths(self, x_NCHW: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return s and F, as the addition takes them."""
        return self.shortcut(x_NCHW), self.branch(x_NCHW)

    def merge(self, shortcut: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum u = s + F, and the block's output. Not in place, because introspection reads u."""
        total = residual if shortcut is None else shortcut + residual
        return total, F.relu(total)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.merge(*self.paths(x_NCHW))[1]

    def taps(self, x_NCHW: Tensor, gate_N111: Tensor | None = None) -> BlockTaps:
        """Return all parts of the block's output; `gate` [N, 1, 1, 1] scales the branch."""
        shortcut, residual = self.paths(x_NCHW)
        if gate_N111 is not None:
            residual = gate_N111 * residual
        return BlockTaps(residual, shortcut, *self.merge(shortcut, residual))


class PreActivationBlock(ResidualBlock):
    """v2: x + branch(ReLU(BN(x))), He et al. 2016 (arXiv 1603.05027); no ReLU after the addition.

    A shortcut that changes the shape takes the pre-activation too, as in the authors' code.
    """

    has_relu = False

    def way_of_shortcut(self) -> nn.Module:
        if isinstance(self.shortcut, Projection):
            return nn.Sequential(*self.preact, *self.shortcut)
        return self.shortcut

    def paths(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        preact_NCHW = self.preact(x_NCHW)
        keeps_x = not isinstance(self.shortcut, Projection)
        return self.shortcut(x_NCHW if keeps_x else preact_NCHW), self.branch(preact_NCHW)

    def merge(self, shortcut: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        assert shortcut is not None
        total = shortcut + residual
        return total, total


class PlainBlock(ResidualBlock):
    """ReLU(branch(x)), for comparison: the same layers without a shortcut (arXiv 1512.03385, section 3.3)."""

    def paths(self, x_NCHW: Tensor) -> tuple[None, Tensor]:
        return None, self.branch(x_NCHW)


class HighwayBlock(PreActivationBlock):
    """T * branch(x) + (1 - T) * shortcut(x) with T = sigmoid(transform(x)): Srivastava et al. 2015.

    arXiv 1505.00387. In the taps, F and s are the gated summands. The last layer of the branch is a
    BatchNorm, and there is no ReLU after the addition.
    """

    def paths(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        transform_NCHW = torch.sigmoid(self.transform(x_NCHW))
        carry_NCHW = 1 - transform_NCHW
        return carry_NCHW * self.shortcut(x_NCHW), transform_NCHW * self.branch(x_NCHW)


VARIANTS: dict[str, type[ResidualBlock]] = {
    "v1": ResidualBlock,
    "v2": PreActivationBlock,
    "plain": PlainBlock,
    "highway": HighwayBlock,
}


def make_block(
    spec: Architecture,
    in_channels: int,
    width: int,
    stride: int,
    drop_probability: float = 0.0,
    hidden: tuple[int, ...] | None = None,
) -> ResidualBlock:
    """Return one block of `spec`; if the shape stays, its shortcut is the identity, except under option C."""
    out_channels = BRANCHES[spec.branch].out_channels(in_channels, width)
    branch = make_branch(spec, in_channels, width, stride, hidden)
    if drop_probability:
        branch.add_module("drop", StochasticDepth(drop_probability))
    entry: dict[str, nn.Module] = {}
    if spec.variant == "v2":
        entry["preact"] = norm_relu(in_channels)
    if spec.variant == "highway":
        entry["transform"] = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(in_channels, out_channels, 3, stride, padding=1))
        )
    same_shape = stride == 1 and in_channels == out_channels
    if spec.variant == "plain" or (same_shape and spec.shortcut != "projection-all"):
        shortcut: nn.Module = nn.Identity()
    else:
        shortcut = SHORTCUTS[spec.shortcut](in_channels, out_channels, stride, spec.variant != "v2")
    return VARIANTS[spec.variant](branch, shortcut, **entry)
