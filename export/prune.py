"""Prune hidden channels: thinner residual branches, and everything else as before.

Only channels between the convolutions of one branch F go. The residual stream keeps its channels, so
F(x) + s(x), gates, receptive fields and all quantities of introspection keep their meaning.

A channel between two convolutions is a row of the first one's weight, a column of the second one's, and one
element of every tensor of the BatchNorms between them.

Shapes: N images, H W space, C channels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from artifact.errors import ResiduumError
from artifact.manifest import Preprocessing
from export.images import calibration_images
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.pixels import normalised
from models.resnet import ResNet
from models.statistics import estimate_statistics
from models.zoo import NUM_CONVS, Architecture

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
    """Return a copy of `model`, in evaluation mode, without about `ratio` of every branch's hidden channels.

    Channels go whose weights, on the way in and on the way out, have the smallest L2 norm. `kept_channels`
    says how many stay. A grouped convolution loses whole groups.

    Args:
        ratio: in [0, 0.9]; 0 changes nothing.
        images_NHW3: uint8, preprocessed as served, without labels; some hundreds are enough. The BatchNorm
            statistics are estimated on them: those of the whole network fit a thinner one badly. None: the
            statistics stay.
        preprocessing: of the images.

    Raises:
        PruneError: the ratio is out of range, or there is no channel that can go.
    """
    check_prunable(model.spec, ratio)
    if ratio == 0:
        return copy.deepcopy(model).eval()
    thinner = _cut(model, ratio)
    if images_NHW3 is not None:
        assert preprocessing is not None
        estimate_statistics(thinner, _batches(images_NHW3, preprocessing, like=thinner.head.weight))
    return thinner


def prune_and_fine_tune(
    model: ResNet, metadata: CheckpointMetadata, ratio: float, epochs: int, data: str, out: Path
) -> tuple[ResNet, CheckpointMetadata]:
    """Return the pruned network, fine-tuned for `epochs` on a data set, and its metadata.

    Args:
        out: the directory for the logs and checkpoint of fine-tuning; nothing is written for 0 epochs.

    Raises:
        PruneError, DataError, TrainingError: from the steps that have these names.
    """
    # Training needs packages that an export without it does not.
    from models.training.data import load_images
    from models.training.fine_tune import fine_tune, fine_tune_recipe

    served = metadata.preprocessing
    images = calibration_images(data, served, NUM_STATISTICS_IMAGES).images
    pruned, tuned = prune(model, ratio, images, served), None
    if epochs:
        recipe = fine_tune_recipe(metadata, epochs)
        stored = served.model_copy(update={"resize": recipe.store_size, "crop": recipe.store_size})
        train_set, valid_set = load_images(data, "train", stored), load_images(data, "valid", served)
        pruned, tuned = fine_tune(pruned, recipe, train_set, valid_set, out)
    return pruned, describe_pruned(pruned, ratio, metadata, tuned)


def hidden_widths(model: ResNet) -> tuple[tuple[int, ...], ...]:
    """Return `Architecture.hidden` in full: channels between the convolutions of every block's branch."""
    return tuple(
        tuple(conv.out_channels for conv in _convs(block.branch)[:-1]) for _, block in model.named_blocks()
    )


def kept_channels(channels: int, ratio: float, channels_of_group: int = 1) -> int:
    """Return how many of `channels` stay: (1 - ratio) of them, in multiples of 8, from 64 on of 16.

    CPUs compute convolutions in blocks of 8 (AVX2) or 16 channels (AVX-512), tensor cores in 8 (fp16) or 16
    (int8); what does not fill a block costs as much as a full one, or more (`docs/performance.md`).
    """
    wanted = (1 - ratio) * channels
    step = math.lcm(16 if wanted >= 64 else 8, channels_of_group)
    return min(channels, max(step, int(wanted / step + 0.5) * step))


def describe_pruned(
    model: ResNet, ratio: float, before: CheckpointMetadata, tuned: CheckpointMetadata | None = None
) -> CheckpointMetadata:
    """Return the metadata of a pruned network; `tuned`: those after fine-tuning, if there was any."""
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
    """Raise PruneError if the ratio is out of range, or a branch has one convolution only."""
    if not 0 <= ratio <= MAX_RATIO:  # nor nan
        raise PruneError(f"a ratio of {ratio:g} cannot be pruned: it must lie in [0, {MAX_RATIO}]")
    if NUM_CONVS[spec.branch] == 1:
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
    """Yield normalised batches with the device and dtype of `like`, all of one size: all count the same."""
    num_batches = max(1, len(images_NHW3) // _BATCH)
    for chunk in np.array_split(images_NHW3[: num_batches * _BATCH], num_batches):
        yield normalised(chunk, preprocessing, torch.float64).to(like)
