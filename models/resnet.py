"""Stem, stages and head: any row of the zoo as a network.

The module knows what the network computes and the receptive field of each block. It knows nothing of training
or export.

Shapes: N batch, C channels, H W space, K classes, L blocks.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from artifact.manifest import Block, ReceptiveField, ShortcutKind, Variant
from models.blocks import (
    TRANSFORM_BIAS,
    BlockTaps,
    HighwayBlock,
    PlainBlock,
    ResidualBlock,
    make_block,
)
from models.branches import BRANCHES
from models.layers import PadChannels, norm_relu
from models.shortcuts import Projection
from models.stems import make_stem, transition
from models.zoo import Architecture, architecture

INITIALISATIONS: dict[str, Callable[..., Tensor]] = {
    # Normal, for ReLU: He et al. 2015, arXiv 1502.01852.
    "he-fan-in": partial(nn.init.kaiming_normal_, mode="fan_in", nonlinearity="relu"),
    "he-fan-out": partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
    # Normal: Glorot and Bengio 2010.
    "xavier": nn.init.xavier_normal_,
}


class ResNet(nn.Module):
    """A residual network, or one of its relatives: float [N, 3, H, W] -> logits [N, K].

    Attributes:
        stem: image to the first stage's channels.
        stage1, stage2, ...: `nn.Sequential` of `ResidualBlock`; a DenseNet's later ones begin with a
            `transition`.
        postact: v2's last BatchNorm and ReLU; the identity elsewhere.
        head: linear, after global average pooling.
        checkpoint_blocks: recompute blocks in the backward pass instead of keeping their activations
            (a thousand layers fit into memory; about a third more time).
    """

    def __init__(self, spec: Architecture) -> None:
        super().__init__()
        self.spec = spec
        self.checkpoint_blocks = False
        self.stem = make_stem(spec)
        channels = spec.stem_width or spec.width
        number_of_block = 0
        for number, depth in enumerate(spec.depths, start=1):
            width = spec.stage_width(number - 1)
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            first_stride = 2 if number > 1 else 1
            if spec.branch == "dense" and number > 1:
                stage["transition"] = transition(channels)
                channels, first_stride = channels // 2, 1
            for index in range(depth):
                hidden = None if spec.hidden is None else spec.hidden[number_of_block]
                number_of_block += 1
                drop = spec.stochastic_depth * number_of_block / sum(spec.depths)
                stride = first_stride if index == 0 else 1
                stage[str(index)] = make_block(spec, channels, width, stride, drop, hidden)
                channels = BRANCHES[spec.branch].out_channels(channels, width)
            self.add_module(f"stage{number}", nn.Sequential(stage))
        self.postact = norm_relu(channels) if spec.variant == "v2" else nn.Identity()
        self.head = nn.Linear(channels, spec.num_classes)

    @property
    def variant(self) -> Variant:
        return self.spec.variant  # type: ignore[return-value]

    def named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield ("stage1.0", block), ... in execution order, and ("stage2.transition", ...) if any."""
        for number in range(1, len(self.spec.depths) + 1):
            for name, layer in self.get_submodule(f"stage{number}").named_children():
                yield f"stage{number}.{name}", layer

    def named_blocks(self) -> Iterator[tuple[str, ResidualBlock]]:
        """Yield ("stage1.0", block), ... in execution order."""
        return ((name, layer) for name, layer in self.named_layers() if isinstance(layer, ResidualBlock))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.stem(x_NCHW)
        for number in range(1, len(self.spec.depths) + 1):
            stage = self.get_submodule(f"stage{number}")
            assert isinstance(stage, nn.Sequential)
            x_NCHW = (_recomputed if self.checkpoint_blocks and self.training else _run)(stage, x_NCHW)
        return self.pool_and_head(x_NCHW)

    def forward_taps(
        self, x_NCHW: Tensor, gates_NL: Tensor | None = None
    ) -> tuple[Tensor, OrderedDict[str, BlockTaps]]:
        """Return logits [N, K] and every block's taps, by name; `gates` scales each branch (1: unchanged)."""
        taps: OrderedDict[str, BlockTaps] = OrderedDict()
        x_NCHW = self.stem(x_NCHW)
        for name, layer in self.named_layers():
            if isinstance(layer, ResidualBlock):
                gate = None if gates_NL is None else gates_NL[:, len(taps)].reshape(-1, 1, 1, 1)
                taps[name] = layer.taps(x_NCHW, gate)
                x_NCHW = taps[name].output
            else:
                x_NCHW = layer(x_NCHW)
        return self.pool_and_head(x_NCHW), taps

    def pool_and_head(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.postact(x_NCHW).mean((2, 3)))

    @torch.no_grad()
    def initialise(
        self, seed: int, zero_init_branch: bool = False, initialisation: str = "he-fan-out"
    ) -> ResNet:
        """Initialise convolutions by a row of INITIALISATIONS, and the head uniformly as torch's Linear.

        With `zero_init_branch` every branch starts at 0, so that every block starts as its shortcut: the last
        BatchNorm's weight (arXiv 1706.02677, section 5.1), in v2 the last convolution's.
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                INITIALISATIONS[initialisation](module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        for _, block in self.named_blocks():
            if isinstance(block, HighwayBlock):
                nn.init.constant_(block.transform.conv.bias, TRANSFORM_BIAS)
            if zero_init_branch and self.spec.has_shortcuts:
                last = nn.Conv2d if self.spec.variant == "v2" else nn.BatchNorm2d
                layers = [layer for layer in block.branch.children() if isinstance(layer, last)]
                nn.init.zeros_(layers[-1].weight)
        return self


def _run(stage: nn.Sequential, x_NCHW: Tensor) -> Tensor:
    y_NCHW: Tensor = stage(x_NCHW)
    return y_NCHW


def _recomputed(stage: nn.Sequential, x_NCHW: Tensor) -> Tensor:
    """Checkpoint about sqrt(number of blocks) at a time: the least memory (arXiv 1604.06174, section 4)."""
    step = math.isqrt(len(stage))
    for start in range(0, len(stage), step):
        segment = stage[start : start + step]
        contexts = partial(_recomputation_contexts, segment)
        x_NCHW = checkpoint(segment, x_NCHW, use_reentrant=False, context_fn=contexts)
    return x_NCHW


def _recomputation_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of a checkpointed block's forward pass and of its recomputation."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Freeze the BatchNorm statistics: the forward pass has counted this batch already."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()  # the recomputation counts in the copy
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def build(
    name: str,
    *,
    seed: int = 0,
    zero_init_branch: bool = False,
    initialisation: str = "he-fan-out",
    **changes: object,
) -> ResNet:
    """Return a newly initialised network of the zoo's row `name`, with `changes` to the row's fields.

    Raises:
        UnknownArchitecture: no such row.
    """
    model = ResNet(architecture(name, **changes))
    return model.initialise(seed, zero_init_branch, initialisation)


def shortcut_kind(block: ResidualBlock) -> ShortcutKind:
    """Return the kind of a block's shortcut."""
    if isinstance(block, PlainBlock):
        return "none"
    if isinstance(block, HighwayBlock):
        return "gated"
    if isinstance(block.shortcut, Projection):
        return "projection"
    return "pad" if isinstance(block.shortcut, PadChannels) else "identity"


@torch.no_grad()
def describe_blocks(model: ResNet, input_size: int) -> tuple[Block, ...]:
    """Return name, shape, stride and receptive field of every block, for square images of that size.

    The field follows Araujo et al. 2019 (doi 10.23915/distill.00021): through a layer of kernel k,
    stride s and padding p, on a grid of spacing j, the size grows by (k - 1) j, the centre of the
    first cell moves by ((k - 1) / 2 - p) j, and j is multiplied by s.
    """
    was_training = model.training
    _, taps = model.eval().forward_taps(torch.zeros(1, 3, input_size, input_size))
    model.train(was_training)
    center, size, jump = _field_through(model.stem, 0.0, 1, 1)
    blocks = []
    for name, block in model.named_layers():
        path = block.branch if isinstance(block, ResidualBlock) else block
        center, size, jump = _field_through(path, center, size, jump)
        if not isinstance(block, ResidualBlock):
            continue
        stage, index = name.removeprefix("stage").split(".")
        _, channels, height, width = taps[name].output.shape
        blocks.append(
            Block(
                name=name,
                stage=int(stage),
                index=int(index),
                shortcut=shortcut_kind(block),
                shape=(channels, height, width),
                stride=jump,
                receptive_field=ReceptiveField(center0=center, size=size),
            )
        )
    return tuple(blocks)


def _field_through(path: nn.Module, center: float, size: int, jump: int) -> tuple[float, int, int]:
    for layer in path.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            kernel, stride, padding = (
                value if isinstance(value, int) else value[0]
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            center += ((kernel - 1) / 2 - int(padding)) * jump
            size += (kernel - 1) * jump
            jump *= stride
    return center, size, jump
