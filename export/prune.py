"""Prune hidden channels: a network with thinner residual branches and everything else as it was.

Only what lies between the convolutions of one branch F goes. The residual stream keeps its channels, so
F(x) + s(x), gates, receptive fields and what introspection says of them mean what they meant.

Which tensors a channel takes along, and how to cut them out, is torch-pruning's dependency graph (Fang et al.
2023, arXiv 2301.12900), which is given one branch at a time: what it does not see it cannot cut.

Shapes: N images, H W space, C channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch_pruning as tp  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor, nn

from artifact.errors import ResiduumError
from artifact.manifest import Preprocessing
from export.verify import source_input
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.resnet import ResNet
from models.statistics import estimate_statistics
from models.zoo import HIDDEN_WIDTHS, Architecture

MAX_RATIO = 0.9
NUM_STATISTICS_IMAGES = 2048  # enough to estimate BatchNorm statistics on
IMPORTANCE = "L2 norm"
_BATCH = 64
_IMPORTANCE = tp.importance.GroupMagnitudeImportance(p=2)


class PruneError(ResiduumError):
    """The network cannot be pruned as asked; the message says why."""


def prune(
    model: ResNet,
    ratio: float,
    images_NHW3: NDArray[np.uint8] | None = None,
    preprocessing: Preprocessing | None = None,
) -> ResNet:
    """A copy of `model`, in evaluation mode, without about `ratio` of the hidden channels of every branch.

    In every branch those go whose weights, on the way in and on the way out, have the least L2 norm. How many
    stay is `kept_channels`; a grouped convolution loses whole groups.

    Args:
        ratio: in [0, 0.9]; 0 changes nothing.
        images_NHW3: uint8, preprocessed as served; no labels needed, some hundreds are enough. BatchNorm
            statistics are estimated anew on them; those of the whole network fit a thinner one badly.
        preprocessing: goes with the images.

    Raises:
        PruneError: no such ratio, branches that hide no channels, or so few that rounding keeps all of them.
    """
    check_prunable(model.spec, ratio)
    if ratio == 0:
        return copy.deepcopy(model).eval()
    thinner = _cut(model, ratio)
    if images_NHW3 is not None:
        assert preprocessing is not None
        estimate_statistics(thinner, _batches(images_NHW3, preprocessing, like=thinner.head.weight))
    return thinner


def hidden_widths(model: ResNet) -> tuple[tuple[int, ...], ...]:
    """`Architecture.hidden`, spelled out: channels between the convolutions of every block's branch."""
    return tuple(
        tuple(conv.out_channels for conv in _convs(block.branch)[:-1]) for _, block in model.named_blocks()
    )


def kept_channels(channels: int, ratio: float, channels_of_group: int = 1) -> int:
    """How many of `channels` stay: (1 - ratio) of them, rounded to eights, from 64 up to sixteens.

    CPUs compute convolutions in blocks of 8 (AVX2) or 16 channels (AVX-512), tensor cores in 8 (fp16) or 16
    (int8); what does not fill a block costs as much as a full one, or more (`docs/performance.md`).
    """
    wanted = (1 - ratio) * channels
    step = math.lcm(16 if wanted >= 64 else 8, channels_of_group)
    return min(channels, max(step, int(wanted / step + 0.5) * step))


def describe_pruned(
    model: ResNet, ratio: float, before: CheckpointMetadata, tuned: CheckpointMetadata | None = None
) -> CheckpointMetadata:
    """What must be known of a pruned network; `tuned` is what fine-tuning it ended with, if it was."""
    name = (before.recipe or {}).get("name", "weights")
    return before.model_copy(
        update={
            "architecture": describe_architecture(model),
            "recipe": {
                "name": f"{name}, pruned",
                "pruning": {"ratio": ratio, "importance": IMPORTANCE, "hidden": hidden_widths(model)},
                "fine_tuning": tuned and tuned.recipe,
                "before": before.recipe,
            },
            "accuracy": tuned and tuned.accuracy,
            "history": tuned.history if tuned else (),
        }
    )


def check_prunable(spec: Architecture, ratio: float) -> None:
    if not 0 <= ratio <= MAX_RATIO:  # nor nan
        raise PruneError(f"a ratio of {ratio:g} cannot be pruned: it must lie in [0, {MAX_RATIO}]")
    if HIDDEN_WIDTHS[spec.branch] == 0:
        raise PruneError(
            f"{spec.name} has one convolution a block: there are no channels between two to prune"
        )


def _cut(model: ResNet, ratio: float) -> ResNet:
    """A thinner network with the weights that stay."""
    source = copy.deepcopy(model).eval().requires_grad_(True)  # the graph is traced by autograd
    with torch.enable_grad():
        for name, block in source.named_blocks():
            stage = int(name.removeprefix("stage").split(".")[0]) - 1
            grouped = model.spec.cardinality > 1
            _cut_branch(block.branch, ratio, model.spec.channels_of_group(stage) if grouped else None)
    widths = hidden_widths(source)
    if widths == hidden_widths(model):
        raise PruneError(
            f"a ratio of {ratio:g} rounds to nothing: {model.spec.name} hides {max(max(w) for w in widths)} "
            "channels at most, and what stays is a multiple of 8 or 16"
        )
    spec = replace(model.spec, hidden=widths, num_parameters=None, num_macs=None)
    parameter = next(model.parameters())
    thinner = ResNet(spec).to(parameter.device, parameter.dtype)
    thinner.load_state_dict(source.state_dict())
    return thinner.eval()


def _cut_branch(branch: nn.Module, ratio: float, channels_of_group: int | None) -> None:
    """In place; None: no convolution is grouped."""
    if channels_of_group is not None:
        grouped = branch.conv2
        assert isinstance(grouped, nn.Conv2d)
        branch.conv2 = GroupedConv(grouped)
    convs = _convs(branch)
    # A grouped convolution takes along the channels on both of its sides.
    roots = convs[:-1] if channels_of_group is None else convs[:1]
    unit = channels_of_group or 1
    graph = tp.DependencyGraph().build_dependency(
        branch,
        torch.zeros(1, convs[0].in_channels, 8, 8).to(convs[0].weight),
        customized_pruners={GroupedConv: _GroupPruner()},
        verbose=False,
    )
    worst = [_worst_channels(_group(graph, conv, range(conv.out_channels)), unit) for conv in roots]
    for conv, channels in zip(roots, worst, strict=True):
        num_cut = conv.out_channels - kept_channels(conv.out_channels, ratio, unit)
        if num_cut:
            _group(graph, conv, channels[:num_cut]).prune()


def _convs(branch: nn.Module) -> list[nn.Conv2d]:
    """Those in a row, without squeeze-and-excitation's own."""
    return [layer for layer in branch.children() if isinstance(layer, nn.Conv2d)]


def _group(graph: tp.DependencyGraph, conv: nn.Conv2d, channels: Sequence[int]) -> tp.Group:
    """All layers that must lose `channels` of `conv`'s output together."""
    return graph.get_pruning_group(conv, tp.prune_conv_out_channels, list(channels))


def _worst_channels(group: tp.Group, unit: int) -> list[int]:
    """The least important first; `unit` of them in a row go together."""
    scores: Tensor = _IMPORTANCE(group).reshape(-1, unit).sum(1)
    order: list[int] = scores.argsort(stable=True).tolist()
    return [index * unit + offset for index in order for offset in range(unit)]


class GroupedConv(nn.Conv2d):
    """A grouped convolution that can lose whole groups; its weight is that of `conv`.

    torch-pruning itself would thin every group alike: three channels a group where there were four.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=False,
        )
        self.weight = conv.weight


class _GroupPruner(tp.BasePruningFunc):  # type: ignore[misc]
    def prune_out_channels(self, layer: GroupedConv, idxs: Sequence[int]) -> GroupedConv:
        kept = sorted(set(range(layer.out_channels)) - set(idxs))
        layer.weight = nn.Parameter(layer.weight[kept].detach())
        layer.groups = len(kept) // layer.weight.shape[1]
        layer.in_channels = layer.out_channels = len(kept)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: GroupedConv) -> int:
        return layer.out_channels

    get_in_channels = get_out_channels


def _batches(images_NHW3: NDArray[np.uint8], preprocessing: Preprocessing, like: Tensor) -> Iterator[Tensor]:
    """Normalised, on the device and in the type of `like`; of one size, because each counts as much."""
    num_batches = max(1, len(images_NHW3) // _BATCH)
    for chunk in np.array_split(images_NHW3[: num_batches * _BATCH], num_batches):
        yield source_input(chunk, preprocessing).to(like)
