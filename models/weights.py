"""Weights that other projects trained.

`load_foreign` reads a state dict or a file from torchvision, timm, transformers or a usual CIFAR repository,
recognises the architecture by the names and shapes of the tensors, and returns a network of ours with the
same logits. It downloads nothing, and it never runs the code of a pickle.
"""

from __future__ import annotations

import pickle
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from models.identify import COUNTER, identify, nearest
from models.key_map import WeightsError, foreign_name, listed, our_names, recognise, to_foreign, to_ours
from models.resnet import ResNet
from models.styles import BESIDE, POOLED
from models.zoo import Architecture

__all__ = ["WeightsError", "identify", "load_foreign", "read_state", "to_foreign"]

# Types of values that trainers often keep beside the weights; none of them runs code.
PLAIN_TYPES = [
    *(Namespace, np.dtype, np._core.multiarray.scalar),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # its name before numpy 2
    *(np.dtypes.Float64DType, np.dtypes.Float32DType),
    *(np.dtypes.Int64DType, np.dtypes.Int32DType, np.dtypes.BoolDType),
]
# Keys under which a checkpoint keeps its state dict, the likeliest first.
NESTED = (
    *("state_dict", "model_state_dict", "model_state", "state_dict_ema", "model_ema"),
    *("model", "net", "network", "weights", "params", "checkpoint"),
)
DEEPEST = 8  # nested dictionaries; one in a pickle may even contain itself


def load_foreign(weights: Path | str | Mapping[str, Tensor], spec: Architecture | None = None) -> ResNet:
    """Return a network of ours, in evaluation mode, with weights of another project.

    Args:
        weights: a state dict, or a file with one, safetensors or PyTorch's; the content tells which.
        spec: the architecture; the number of classes comes from the file. None: the tensors tell, under the
            assumptions of `models.identify`.

    Raises:
        WeightsError: unreadable file, or tensors missing, left over or of another shape; the
            message has them under the file's own names, and the nearest architecture.
    """
    state = read_state(Path(weights)) if isinstance(weights, Path | str) else dict(weights)
    state = {name: tensor for name, tensor in state.items() if name not in BESIDE}
    style = recognise(state)
    names = our_names(state, style)
    unknown = [name for name, own in names.items() if own is None]
    ours = to_ours({name: state[name] for name, own in names.items() if own is not None}, style)
    try:
        # Our own names do not tell whether shortcuts have a pool.
        spec = spec or identify(ours, pooled=None if style == "residuum" else style in POOLED)
    except WeightsError as error:
        hint = f"; unknown tensor names: {listed(unknown)}" if unknown else ""
        raise WeightsError(f"{error}{hint}") from error
    head = ours.get("head.weight")
    if head is not None and head.ndim == 2 and len(head) > 0:
        spec = replace(spec, num_classes=len(head))
    with torch.device("meta"):  # without the time of an initialisation
        model = ResNet(spec)
    if misfits := _misfits(state, ours, model, style):
        raise WeightsError(f"the tensors do not fit {spec.name}: {'; '.join((*misfits, nearest(ours)))}")
    model.to_empty(device="cpu")
    model.load_state_dict(ours, strict=False)
    for name, counter in model.named_buffers():
        if name not in ours:
            counter.zero_()
    return model.eval()


def _misfits(state: Mapping[str, Tensor], ours: Mapping[str, Tensor], model: ResNet, style: str) -> list[str]:
    """Describe the tensors that are missing, unexpected or of another shape."""
    wanted = model.state_dict()
    names = our_names(state, style)
    theirs = {own: name for name, own in names.items()}
    missing = [name for name in wanted if name not in ours and not name.endswith(COUNTER)]
    unexpected = [name for name, own in names.items() if own not in wanted]
    reshaped = [
        f"{theirs[name]} {list(ours[name].shape)} instead of {list(wanted[name].shape)}"
        for name in ours
        if name in wanted and ours[name].shape != wanted[name].shape
    ]
    found = (
        ("missing", [foreign_name(name, style) or name for name in missing]),
        ("unexpected", unexpected),
        ("of another shape", reshaped),
    )
    return [f"{len(some)} {what} ({listed(some, 3)})" for what, some in found if some]


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file, however deep in the checkpoint it is.

    Raises:
        WeightsError: no such file, or one that holds more than tensors and plain values.
    """
    found = _read(path)
    for _ in range(DEEPEST):
        if not isinstance(found, Mapping) or (inner := _inner(found)) is None:
            break
        found = inner
    tensors = (
        {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise WeightsError(
            f"{path} holds no state dict: expected names and tensors, or these under {NESTED[0]!r}"
        )
    return tensors


def _read(path: Path) -> object:
    """Return the content of a file, or raise WeightsError."""
    fault = "not a safetensors file, and not a PyTorch file, or one that would have to run code to be read"
    try:
        if is_safetensors(path):
            fault = "a damaged safetensors file"
            return load_file(path)
        with torch.serialization.safe_globals(PLAIN_TYPES), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            with path.open("rb") as file:  # torch takes a path for safetensors by its suffix
                return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read weights from {path}: {error.strerror or error}") from error
    # Files are hostile input; for damaged ones torch's reader raises KeyError, IndexError, AssertionError...
    except Exception as error:
        raise WeightsError(f"cannot read weights from {path}: {fault}{_reason(error)}") from error


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins like safetensors: with the length of a JSON object and its brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def _reason(error: Exception) -> str:
    """Return the reader's first sentence in brackets, without torch's advice to run code, or nothing."""
    if not isinstance(error, pickle.UnpicklingError | RuntimeError | SafetensorError):
        return ""
    told = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    sentence = told.split("\n")[0].split(". ")[0]
    return f" ({sentence})" if sentence else ""


def _inner(found: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return the first nested dictionary under one of the usual keys."""
    for key in NESTED:
        if isinstance(inner := found.get(key), Mapping):
            return inner
    return None
