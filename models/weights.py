"""Weights that others trained: foreign parameter names stop at the table in this module.

`load_foreign` takes a state dict or a file as torchvision, timm and the usual CIFAR repositories
write it, recognises the architecture by the names and shapes of its tensors, and gives a network
of ours with the same logits. It does not download anything and never runs a pickle's code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.resnet import ResNet
from models.zoo import ZOO, Architecture

# Foreign name -> ours, tried in this order; the first that matches from the start wins.
KEY_MAP: tuple[tuple[str, str], ...] = (
    (r"conv1\.", "stem.conv."),
    (r"bn1\.", "stem.norm."),
    (r"layer(\d+)\.(\d+)\.conv(\d)\.", r"stage\1.\2.branch.conv\3."),
    (r"layer(\d+)\.(\d+)\.bn(\d)\.", r"stage\1.\2.branch.norm\3."),
    (r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.0\.", r"stage\1.\2.shortcut.conv."),
    (r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.1\.", r"stage\1.\2.shortcut.norm."),
    (r"(?:fc|linear|classifier)\.", "head."),
)
# Where a checkpoint keeps its state dict, and what wrappers put before every name.
NESTED = ("state_dict", "model_state_dict", "model", "net")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


class WeightsError(Exception):
    """The file or state dict is not a ResNet that we know; the message names what does not fit."""


def load_foreign(weights: Path | str | Mapping[str, Tensor], spec: Architecture | None = None) -> ResNet:
    """A network of ours in evaluation mode with foreign weights, in float32.

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
    return model.float().eval()


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, wherever in the checkpoint it lies.

    Raises:
        WeightsError: no such file, or one that holds more than tensors and plain values.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"cannot read weights from {path}: {reason}") from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
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
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
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
