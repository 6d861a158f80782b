"""Prune hidden channels: a network with thinner residual branches and everything else as it was.

Only what lies between the convolutions of one branch F goes. The residual stream keeps its channels, so
F(x) + s(x), gates, receptive fields and what introspection says of them mean what they meant.

A channel between two convolutions is a row of the first one's weight, a column of the second one's, and one
element of every tensor of the BatchNorms between them.

Shapes: N images, H W space, C channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
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
    """Return a thinner network with the weights of the channels that are kept."""
    state, hidden = model.state_dict(), []
    for name, block in model.named_blocks():
        stage = int(name.removeprefix("stage").split(".")[0]) - 1
        unit = model.spec.channels_of_group(stage) if model.spec.cardinality > 1 else None
        kept = _kept_between(block.branch, ratio, unit)
        hidden.append(tuple(map(len, kept)))
        state |= {f"{name}.branch.{key}": tensor for key, tensor in _selected(block.branch, kept).items()}
    widths = tuple(hidden)
    if widths == hidden_widths(model):
        raise PruneError(
            f"a ratio of {ratio:g} rounds to nothing: {model.spec.name} hides {max(max(w) for w in widths)} "
            "channels at most, and what stays is a multiple of 8 or 16"
        )
    spec = replace(model.spec, hidden=widths, num_parameters=None, num_macs=None)
    parameter = next(model.parameters())
    thinner = ResNet(spec).to(parameter.device, parameter.dtype)
    thinner.load_state_dict(state)
    return thinner.eval()


def _convs(branch: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions in a row, without those of squeeze-and-excitation."""
    return [layer for layer in branch.children() if isinstance(layer, nn.Conv2d)]


def _kept_between(branch: nn.Module, ratio: float, channels_of_group: int | None) -> list[Tensor]:
    """Return the indices of the channels to keep after each convolution but the last.

    A grouped convolution (`channels_of_group` is not None) stands between two others and maps each group to
    itself, so both of its sides keep the same whole groups.
    """
    convs = _convs(branch)
    norms = [layer for layer in branch.children() if isinstance(layer, nn.BatchNorm2d)]
    if channels_of_group is not None:
        first, _, last = convs
        return [_most_important(first, norms[:2], last, ratio, channels_of_group)] * 2
    between = zip(convs[:-1], norms[: len(convs) - 1], convs[1:], strict=True)
    return [_most_important(before, [norm], after, ratio) for before, norm, after in between]


def _most_important(
    before: nn.Conv2d, norms: list[nn.BatchNorm2d], after: nn.Conv2d, ratio: float, unit: int = 1
) -> Tensor:
    """Return the channels between two convolutions with the largest weights, in ascending order.

    The score of a channel is the sum of squares of its weights on the way in, in the norms, and on the way
    out; `unit` neighbours are kept or dropped together.
    """
    parts = (before.weight, *(norm.weight for norm in norms), after.weight.transpose(0, 1))
    scores_C = torch.zeros(before.out_channels, device=before.weight.device)
    for part in parts:
        scores_C += part.detach().reshape(len(part), -1).pow(2).sum(1)
    order = scores_C.reshape(-1, unit).sum(1).argsort(stable=True)  # the least important first
    num_kept = kept_channels(before.out_channels, ratio, unit) // unit
    groups = order[len(order) - num_kept :].sort().values
    return (groups[:, None] * unit + torch.arange(unit, device=groups.device)).flatten()


def _selected(branch: nn.Module, kept: list[Tensor]) -> dict[str, Tensor]:
    """Return the state of a branch's convolutions and norms with the `kept` channels only."""
    state: dict[str, Tensor] = {}
    entering: Tensor | slice = slice(None)
    for number, conv in enumerate(_convs(branch), start=1):
        leaving = kept[number - 1] if number <= len(kept) else slice(None)
        for key, tensor in branch.state_dict().items():
            if key.startswith(f"norm{number}.") and tensor.ndim:
                state[key] = tensor[leaving]
        weight = conv.weight.detach()[leaving]
        state[f"conv{number}.weight"] = weight if conv.groups > 1 else weight[:, entering]
        entering = leaving
    return state


def _batches(images_NHW3: NDArray[np.uint8], preprocessing: Preprocessing, like: Tensor) -> Iterator[Tensor]:
    """Normalised, on the device and in the type of `like`; of one size, because each counts as much."""
    num_batches = max(1, len(images_NHW3) // _BATCH)
    for chunk in np.array_split(images_NHW3[: num_batches * _BATCH], num_batches):
        yield source_input(chunk, preprocessing).to(like)
