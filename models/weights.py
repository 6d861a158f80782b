"""Weights that others trained: foreign parameter names stop at the table in this module.

`load_foreign` takes a state dict or a file as torchvision, timm and the usual CIFAR repositories
write it, recognises the architecture by the names and shapes of its tensors, and gives a network
of ours with the same logits. It does not download anything and never runs a pickle's code.
"""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.resnet import ResNet
from models.zoo import ZOO, Architecture

PLAIN_TYPES = [Namespace, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType, np._core.multiarray.scalar]
Replacement = str | Callable[[re.Match[str]], str]

# What comes after `stageS.B.branch.` for the n-th module of weiaicunzai's `residual_function`.
_SEQUENCE = {0: "conv1", 1: "norm1", 3: "conv2", 4: "norm2", 6: "conv3", 7: "norm3"}


def _path(
    pattern: str, name: str, *, stage_from: int, block_from: int, conv_from: int = 1
) -> tuple[str, Replacement]:
    """A row for projects that count stages, blocks or convolutions from another number than 1, 0 and 1."""

    def rename(match: re.Match[str]) -> str:
        stage, block = int(match[1]) - stage_from + 1, int(match[2]) - block_from
        layer = f"{name}{int(match[3]) - conv_from + 1}" if match.re.groups == 3 else name
        return f"stage{stage}.{block}.{layer}."

    return pattern, rename


# Foreign name -> ours, tried in this order; the first that matches from the start wins.
KEY_MAP: tuple[tuple[str, Replacement], ...] = (
    # weiaicunzai/pytorch-cifar100
    (r"conv1\.0\.", "stem.conv."),
    (r"conv1\.1\.", "stem.norm."),
    *(
        _path(
            rf"conv(\d)_x\.(\d+)\.residual_function\.{number}\.", f"branch.{name}", stage_from=2, block_from=0
        )
        for number, name in _SEQUENCE.items()
    ),
    _path(r"conv(\d)_x\.(\d+)\.shortcut\.0\.", "shortcut.conv", stage_from=2, block_from=0),
    _path(r"conv(\d)_x\.(\d+)\.shortcut\.1\.", "shortcut.norm", stage_from=2, block_from=0),
    # torchvision, timm, akamaster, chenyaofo, kuangliu
    (r"conv1\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    (r"layer(\d+)\.(\d+)\.conv(\d)\.", r"stage\1.\2.branch.conv\3."),
    (r"layer(\d+)\.(\d+)\.bn(\d)\.", r"stage\1.\2.branch.norm\3."),
    (r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.0\.", r"stage\1.\2.shortcut.conv."),
    (r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.1\.", r"stage\1.\2.shortcut.norm."),
    # osmr/pytorchcv
    (r"init_block\.(?:conv\.)?conv\.", "stem.conv."),
    (r"init_block\.(?:conv\.)?bn\.", "stem.norm."),
    _path(r"stage(\d)\.unit(\d+)\.body\.conv(\d)\.conv\.", "branch.conv", stage_from=1, block_from=1),
    _path(r"stage(\d)\.unit(\d+)\.body\.conv(\d)\.bn\.", "branch.norm", stage_from=1, block_from=1),
    _path(r"stage(\d)\.unit(\d+)\.identity_conv\.conv\.", "shortcut.conv", stage_from=1, block_from=1),
    _path(r"stage(\d)\.unit(\d+)\.identity_conv\.bn\.", "shortcut.norm", stage_from=1, block_from=1),
    # transformers
    (r"embedder\.embedder\.convolution\.", "stem.conv."),
    (r"embedder\.embedder\.normalization\.", "stem.norm."),
    *(
        _path(
            rf"stages\.(\d+)\.layers\.(\d+)\.layer\.(\d)\.{theirs}\.",
            f"branch.{ours}",
            stage_from=0,
            block_from=0,
            conv_from=0,
        )
        for theirs, ours in (("convolution", "conv"), ("normalization", "norm"))
    ),
    _path(
        r"stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.", "shortcut.conv", stage_from=0, block_from=0
    ),
    _path(
        r"stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.",
        "shortcut.norm",
        stage_from=0,
        block_from=0,
    ),
    # everybody's classifier
    (r"(?:fc|linear|classifier|last_linear|logits|output|head)\.(?:fc\.|\d+\.)?(?=weight|bias)", "head."),
)
# Where a checkpoint keeps its state dict, and what wrappers put before every name.
NESTED = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "state_dict_ema",
    "model",
    "net",
    "weights",
    "params",
)
PREFIX = re.compile(r"^(?:module|_orig_mod|model|net|network|backbone|encoder|resnet|features)\.")


class WeightsError(Exception):
    """The file or state dict is not a ResNet that we know; the message names what does not fit."""


def load_foreign(weights: Path | str | Mapping[str, Tensor], spec: Architecture | None = None) -> ResNet:
    """A network of ours in evaluation mode with foreign weights.

    Tensors do not tell everything. Taken as given, unless `spec` says otherwise: no pooling after a 3x3 stem
    of stride 1, option A's zeros half before and half after the old channels (`shortcut="pad-after"`: all
    after), a bottleneck's stride on its 3x3, BatchNorm's epsilon 1e-5.

    Args:
        weights: a state dict, or a `.safetensors`, `.pth`, `.pt` or `.th` file that holds one.
        spec: the architecture; None: recognised by the tensors.

    Raises:
        WeightsError: unreadable file, unknown names, or tensors missing, left over or of another shape.
    """
    state = read_state(Path(weights)) if isinstance(weights, Path | str) else dict(weights)
    ours = rename(state)
    model = ResNet(spec or identify(ours))
    wanted = model.state_dict()
    # How many batches a BatchNorm saw matters only to a momentum of None; older files lack it.
    missing = sorted(k for k in wanted if k not in ours and not k.endswith("num_batches_tracked"))
    unexpected = sorted(k for k in ours if k not in wanted)
    reshaped = sorted(k for k in ours if k in wanted and ours[k].shape != wanted[k].shape)
    if missing or unexpected or reshaped:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", reshaped),
            )
            if names
        ]
        raise WeightsError(f"the tensors do not fit {model.spec.name}: {'; '.join(parts)}")
    model.load_state_dict(ours, strict=False)
    return model.eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, wherever in the checkpoint it lies.

    Raises:
        WeightsError: no such file, or one that holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # What trainers often keep beside the weights; none of these runs code.
        with torch.serialization.safe_globals(PLAIN_TYPES):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        raise WeightsError(f"cannot read weights from {path}: {reason}") from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if isinstance(found, Mapping):
        found = {name: value for name, value in found.items() if isinstance(value, Tensor)} or found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise WeightsError(
            f"{path} holds no state dict: expected names and tensors, or these under {NESTED[0]!r}"
        )
    return dict(found)


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Foreign names to ours.

    Raises:
        WeightsError: names that no row of KEY_MAP takes.
    """
    ours, unknown = {}, []
    for name, tensor in state.items():
        bare = _without_prefixes(name)
        for pattern, replacement in KEY_MAP:
            renamed, count = re.subn(f"^{pattern}", replacement, bare)
            if count:
                ours[renamed] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        raise WeightsError(
            f"unknown tensor names: {', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}"
        )
    return ours


def _without_prefixes(name: str) -> str:
    while (bare := PREFIX.sub("", name)) != name:
        name = bare
    return name


def identify(ours: Mapping[str, Tensor]) -> Architecture:
    """The architecture behind renamed tensors; the zoo's row where there is one.

    Raises:
        WeightsError: no stem, stages or head among them.
    """
    blocks = {tuple(map(int, m.groups())) for k in ours if (m := re.match(r"stage(\d+)\.(\d+)\.", k))}
    needed = ("stem.conv.weight", "stage1.0.branch.conv1.weight", "head.weight")
    if absent := [name for name in needed if name not in ours]:
        raise WeightsError(f"not a ResNet: no tensor became {', '.join(absent)}")
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in range(1, max(s for s, _ in blocks) + 1))
    spec = Architecture(
        name="",
        depths=depths,
        branch="bottleneck" if "stage1.0.branch.conv3.weight" in ours else "basic",
        stem="imagenet" if ours["stem.conv.weight"].shape[-1] == 7 else "3x3",
        shortcut="projection" if "stage2.0.shortcut.conv.weight" in ours else "pad",
        width=ours["stage1.0.branch.conv1.weight"].shape[0],
        num_classes=ours["head.weight"].shape[0],
    )
    for row in ZOO.values():
        shape = replace(
            spec,
            name=row.name,
            input_size=row.input_size,
            source=row.source,
            num_parameters=row.num_parameters,
            num_classes=row.num_classes,
        )
        if shape == row:
            return replace(row, num_classes=spec.num_classes)
    layers = 2 + sum(depths) * (3 if spec.branch == "bottleneck" else 2)
    return replace(
        spec, name=f"resnet{layers}", input_size=224 if spec.stem == "imagenet" else 32, source="foreign"
    )
