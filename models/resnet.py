"""Stem, stages and head: any row of the zoo as a network.

It does not know how it is trained or exported, only what it computes and where each block looks.

Shapes: N batch, C channels, H W space, K classes, L blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.blocks import BRANCHES, SHORTCUTS, STEMS, BlockTaps, PadShortcut, Projection, ResidualBlock
from models.manifest import Block, ReceptiveField, ShortcutKind, Variant
from models.zoo import Architecture, architecture


class ResNet(nn.Module):
    """A residual network: float [N, 3, H, W] -> logits [N, K].

    Attributes:
        stem: image to the first stage's channels.
        stage1, stage2, ...: `nn.Sequential` of `ResidualBlock`.
        head: linear, after global average pooling.
        checkpoint_blocks: recompute each block in the backward pass instead of keeping its
            activations (memory of a thousand layers fits, about a third more time).
    """

    variant: Variant = "v1"

    def __init__(self, spec: Architecture) -> None:
        super().__init__()
        self.spec = spec
        self.checkpoint_blocks = False
        self.stem = STEMS[spec.stem](spec.width)
        channels = spec.width
        for number, depth in enumerate(spec.depths, start=1):
            width = spec.width * 2 ** (number - 1)
            blocks = []
            for index in range(depth):
                stride = 2 if number > 1 and index == 0 else 1
                blocks.append(make_block(spec, channels, width, stride))
                channels = width * BRANCHES[spec.branch].expansion
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
        self.head = nn.Linear(channels, spec.num_classes)

    def named_blocks(self) -> Iterator[tuple[str, ResidualBlock]]:
        """("stage1.0", block), ... in the order of the data."""
        for number in range(1, len(self.spec.depths) + 1):
            stage = self.get_submodule(f"stage{number}")
            for index, block in enumerate(stage.children()):
                assert isinstance(block, ResidualBlock)
                yield f"stage{number}.{index}", block

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.stem(x_NCHW)
        for _, block in self.named_blocks():
            if self.checkpoint_blocks and self.training:
                contexts = partial(_recomputation_contexts, block)
                x_NCHW = checkpoint(block, x_NCHW, use_reentrant=False, context_fn=contexts)
            else:
                x_NCHW = block(x_NCHW)
        return self.pool_and_head(x_NCHW)

    def forward_taps(
        self, x_NCHW: Tensor, gates_NL: Tensor | None = None
    ) -> tuple[Tensor, OrderedDict[str, BlockTaps]]:
        """Logits [N, K] and every block's parts, by name; `gates` scales each branch (1 leaves it)."""
        taps: OrderedDict[str, BlockTaps] = OrderedDict()
        x_NCHW = self.stem(x_NCHW)
        for number, (name, block) in enumerate(self.named_blocks()):
            gate = None if gates_NL is None else gates_NL[:, number].reshape(-1, 1, 1, 1)
            taps[name] = block.taps(x_NCHW, gate)
            x_NCHW = taps[name].output
        return self.pool_and_head(x_NCHW), taps

    def pool_and_head(self, x_NCHW: Tensor) -> Tensor:
        return self.head(x_NCHW.mean((2, 3)))

    @torch.no_grad()
    def initialise(self, seed: int, zero_init_branch: bool = False) -> ResNet:
        """He initialisation, normal with fan-out (arXiv 1502.01852); the head uniform as torch's Linear.

        With `zero_init_branch` the last BatchNorm of every branch starts at 0, so that every block
        starts as its shortcut (arXiv 1706.02677, section 5.1).
        """
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        if zero_init_branch:
            for _, block in self.named_blocks():
                last_norm = [m for m in block.branch.modules() if isinstance(m, nn.BatchNorm2d)][-1]
                nn.init.zeros_(last_norm.weight)
        return self


def _recomputation_contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the forward pass of a checkpointed block, and for doing it again."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorm statistics stay as they are: the forward pass has counted this batch already."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()  # the one that the extra pass counts on
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def make_block(spec: Architecture, in_channels: int, width: int, stride: int) -> ResidualBlock:
    """One block of `spec`; the shortcut is the identity wherever the shape allows it."""
    branch = BRANCHES[spec.branch]
    out_channels = width * branch.expansion
    if stride == 1 and in_channels == out_channels:
        shortcut: nn.Module = nn.Identity()
    else:
        shortcut = SHORTCUTS[spec.shortcut](in_channels, out_channels, stride)
    return ResidualBlock(branch.make(in_channels, width, stride), shortcut)


def build(name: str, *, seed: int = 0, zero_init_branch: bool = False, **changes: object) -> ResNet:
    """A freshly initialised network of the zoo's row `name`, with `changes` to the row's fields.

    Raises:
        UnknownArchitecture: no such row.
    """
    return ResNet(architecture(name, **changes)).initialise(seed, zero_init_branch)


def shortcut_kind(block: ResidualBlock) -> ShortcutKind:
    """What kind of path carries x past the branch."""
    if isinstance(block.shortcut, Projection):
        return "projection"
    return "pad" if isinstance(block.shortcut, PadShortcut) else "identity"


@torch.no_grad()
def describe_blocks(model: ResNet, input_size: int) -> tuple[Block, ...]:
    """Name, shape, stride and receptive field of every block for square images of `input_size` pixels.

    The field follows Araujo et al. 2019 (doi 10.23915/distill.00021): through a layer of kernel k,
    stride s and padding p, on a grid of spacing j, the size grows by (k - 1) j, the centre of the
    first cell moves by ((k - 1) / 2 - p) j, and j is multiplied by s.
    """
    was_training = model.training
    _, taps = model.eval().forward_taps(torch.zeros(1, 3, input_size, input_size))
    model.train(was_training)
    center, size, jump = _field_through(model.stem, 0.0, 1, 1)
    blocks = []
    for name, block in model.named_blocks():
        center, size, jump = _field_through(block.branch, center, size, jump)
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
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (
                value if isinstance(value, int) else value[0]
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            center += ((kernel - 1) / 2 - int(padding)) * jump
            size += (kernel - 1) * jump
            jump *= stride
    return center, size, jump
