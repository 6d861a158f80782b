"""The building blocks of every variant: merge(shortcut(x), branch(x)), with the two paths apart.

A branch ends where the addition takes it, a shortcut includes its projection's BatchNorm, and nothing
touches either before they are added. So F(x) and s(x) are read where they are made: no hooks.

A variant is a class of block; what its branch, shortcut and stem are made of are rows of the tables here.

Shapes: N batch, C channels, H W space.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.zoo import Architecture

# A highway block starts as little but its shortcut: sigmoid(-2) = 0.12 (Srivastava et al. 2015, section 3.1).
TRANSFORM_BIAS = -2.0


class BlockTaps(NamedTuple):
    """What a block made, each [N, C, H, W]: total = shortcut + residual; a plain block has no shortcut."""

    residual: Tensor
    shortcut: Tensor | None
    total: Tensor
    output: Tensor


# --- blocks: one class a variant ------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """v1: ReLU(shortcut(x) + branch(x)), He et al. 2016 (arXiv 1512.03385)."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, **entry: nn.Module) -> None:
        """`entry`: what else a variant applies to x, under the name of its attribute."""
        super().__init__()
        for name, module in entry.items():
            self.add_module(name, module)
        self.branch = branch
        self.shortcut = shortcut

    # Whether a ReLU follows the addition.
    has_relu = True

    def way_of_shortcut(self) -> nn.Module:
        """From x to s, as one module, where s is linear in x once the masks of ReLUs are frozen."""
        return self.shortcut

    def paths(self, x_NCHW: Tensor) -> tuple[Tensor | None, Tensor]:
        """s and F, as they are added."""
        return self.shortcut(x_NCHW), self.branch(x_NCHW)

    def merge(self, shortcut: Tensor | None, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The sum u = s + F, and the block's output. Not in place: u is an answer of its own."""
        total = residual if shortcut is None else shortcut + residual
        return total, F.relu(total)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.merge(*self.paths(x_NCHW))[1]

    def taps(self, x_NCHW: Tensor, gate_N111: Tensor | None = None) -> BlockTaps:
        """The same block with its parts kept apart; `gate` [N, 1, 1, 1] scales the branch."""
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
    """For comparison: ReLU(branch(x)), the same layers without a shortcut (arXiv 1512.03385, section 3.3)."""

    def paths(self, x_NCHW: Tensor) -> tuple[None, Tensor]:
        return None, self.branch(x_NCHW)


class HighwayBlock(PreActivationBlock):
    """T * branch(x) + (1 - T) * shortcut(x) with T = sigmoid(transform(x)): Srivastava et al. 2015.

    arXiv 1505.00387. F and s of the taps are what is added: gated. The last layer of the branch is a
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
    """One block of `spec`; where the shape allows it the shortcut is the identity, except under option C."""
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


# --- branches ---------------------------------------------------------------------------------------------


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def basic_convs(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """Two 3x3 convolutions, `width` channels out."""
    return [conv(in_channels, width, 3, stride), conv(width, width, 3)]


def bottleneck_convs(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """1x1, 3x3, 1x1 with 4 * `width` channels out; the stride is on the 3x3 (v1.5).

    The 3x3 has `cardinality` groups of `group_width` channels each in the first stage, and these double
    with every stage: wide (arXiv 1605.07146) and ResNeXt (arXiv 1611.05431) are this with other numbers.
    """
    inner = spec.cardinality * (spec.group_width or spec.width) * width // spec.width
    return [
        conv(in_channels, inner, 1),
        conv(inner, inner, 3, stride, spec.cardinality),
        conv(inner, 4 * width, 1),
    ]


def single_conv(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """One 3x3 convolution: a VGG's layer."""
    return [conv(in_channels, width, 3)]


def dense_convs(spec: Architecture, in_channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """1x1 to four times the growth rate, 3x3 to the growth rate `width` (DenseNet-BC, arXiv 1608.06993)."""
    return [conv(in_channels, 4 * width, 1), conv(4 * width, width, 3)]


class BranchKind(NamedTuple):
    """A branch's convolutions, and the channels that a block gives, by those that it takes and its width."""

    convs: Callable[[Architecture, int, int, int], list[nn.Conv2d]]
    out_channels: Callable[[int, int], int]


BRANCHES: dict[str, BranchKind] = {
    "basic": BranchKind(basic_convs, lambda in_channels, width: width),
    "bottleneck": BranchKind(bottleneck_convs, lambda in_channels, width: 4 * width),
    "conv": BranchKind(single_conv, lambda in_channels, width: width),
    "dense": BranchKind(dense_convs, lambda in_channels, width: in_channels + width),
}


def make_branch(
    spec: Architecture, in_channels: int, width: int, stride: int, hidden: tuple[int, ...] | None = None
) -> nn.Sequential:
    """conv-BN-ReLU-...-conv-BN; in v2 the last BatchNorm belongs to the next block.

    Dropout, where the row has it, is before the last convolution (arXiv 1605.07146, section 2.4), and
    squeeze-and-excitation at the end (arXiv 1709.01507). `hidden`: the block's row of `Architecture.hidden`.
    """
    kind = BRANCHES[spec.branch]
    convs = kind.convs(spec, in_channels, width, stride)
    if hidden is not None:
        convs = narrowed(convs, hidden)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if spec.branch == "conv" and stride > 1:
        layers["pool"] = nn.MaxPool2d(stride)
    for number, layer in enumerate(convs, start=1):
        if number == len(convs) and spec.dropout:
            layers["dropout"] = nn.Dropout(spec.dropout)
        layers[f"conv{number}"] = layer
        if number < len(convs) or spec.variant != "v2":
            layers[f"norm{number}"] = nn.BatchNorm2d(layer.out_channels)
        if number < len(convs):
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
    if spec.se_reduction is not None:
        layers["se"] = SqueezeExcitation(convs[-1].out_channels, spec.se_reduction, spec.se_round_to)
    if spec.branch == "dense":
        layers["pad"] = PadChannels(before=in_channels)
    return nn.Sequential(layers)


def narrowed(convs: list[nn.Conv2d], hidden: tuple[int, ...]) -> list[nn.Conv2d]:
    """The same convolutions with `hidden` channels between them; the channels of a group stay as many."""
    ends = (convs[0].in_channels, *hidden, convs[-1].out_channels)
    return [
        conv(
            channels,
            out_channels,
            layer.kernel_size[0],
            layer.stride[0],
            1 if layer.groups == 1 else channels * layer.groups // layer.in_channels,
        )
        for layer, channels, out_channels in zip(convs, ends[:-1], ends[1:], strict=True)
    ]


def hidden_channels(channels: int, reduction: int, round_to: int) -> int:
    """1 / `reduction` of the channels, rounded to a multiple of `round_to`, and at least that."""
    return max(round_to, (channels // reduction + round_to // 2) // round_to * round_to)


class SqueezeExcitation(nn.Module):
    """x times a gate a channel, made of the mean of every channel (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, reduction: int, round_to: int = 1) -> None:
        super().__init__()
        hidden = hidden_channels(channels, reduction, round_to)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        squeezed = F.relu(self.reduce(x_NCHW.mean((2, 3), keepdim=True)))
        return x_NCHW * torch.sigmoid(self.expand(squeezed))


class StochasticDepth(nn.Module):
    """While training, drop the branch of whole images (Huang et al. 2016, arXiv 1603.09382).

    What is kept is divided by its probability, so that evaluation needs no change.
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


# --- shortcuts --------------------------------------------------------------------------------------------


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


class PadChannels(nn.Module):
    """Zeros for new channels before and after those of x, at every stride-th pixel; no parameters."""

    def __init__(self, before: int = 0, after: int = 0, stride: int = 1) -> None:
        super().__init__()
        self.before, self.after, self.stride = before, after, stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = x_NCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_NCHW, (0, 0, 0, 0, self.before, self.after))


def pad(in_channels: int, out_channels: int, stride: int, has_norm: bool) -> nn.Module:
    """Option A with half of the zeros before the old channels and half after: most PyTorch code for CIFAR.

    He et al. 2016, section 4.2, leaves open where the zeros go.
    """
    before = (out_channels - in_channels) // 2
    return PadChannels(before, out_channels - in_channels - before, stride)


def pad_after(in_channels: int, out_channels: int, stride: int, has_norm: bool) -> nn.Module:
    """Option A with all of the zeros after the old channels: the authors' code in Torch."""
    return PadChannels(0, out_channels - in_channels, stride)


def pooled_projection(in_channels: int, out_channels: int, stride: int, has_norm: bool) -> nn.Module:
    return Projection(in_channels, out_channels, stride, has_norm, pooled=True)


# Used only where the shape changes; elsewhere a shortcut is the identity, except under option C.
SHORTCUTS: dict[str, Callable[[int, int, int, bool], nn.Module]] = {
    "pad": pad,  # option A
    "pad-after": pad_after,
    "projection": Projection,  # option B
    "projection-all": Projection,  # option C: every shortcut projects
    "pooled-projection": pooled_projection,  # ResNet-D
}


# --- stems, and what stands between and after the stages ------------------------------------------------


def norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True)))


def transition(channels: int) -> nn.Sequential:
    """Between the stages of a DenseNet-BC: half the channels, half the size."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=conv(channels, channels // 2, 1),
            pool=nn.AvgPool2d(2),
        )
    )


def make_stem(spec: Architecture) -> nn.Sequential:
    """Image to the first stage's channels; in v2 the first block brings the last BatchNorm and ReLU."""
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
