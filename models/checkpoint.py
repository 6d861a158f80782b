"""A checkpoint: weights and their metadata, in one safetensors file.

The metadata is JSON in the file's header, so a checkpoint describes itself, and loading it executes no code.
It holds no optimizer state: a run resumes from a file of its own (`models.training.state`).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from artifact.errors import ResiduumError
from artifact.manifest import Accuracy, Label, Preprocessing, Record
from models.resnet import ResNet
from models.zoo import Architecture

METADATA_KEY = "residuum"


class CheckpointError(ResiduumError):
    """The file is not a checkpoint of ours; the message says why."""


class CheckpointMetadata(Record):
    """The metadata in the file's header; `architecture` holds the fields of `zoo.Architecture`."""

    architecture: dict[str, object]
    labels: tuple[Label, ...]
    preprocessing: Preprocessing
    recipe: dict[str, object] | None = None
    dataset: str | None = None
    commit: str | None = None
    seed: int | None = None
    accuracy: Accuracy | None = None
    history: tuple[dict[str, float], ...] = ()


def save_checkpoint(path: Path, model: ResNet, metadata: CheckpointMetadata) -> None:
    """Write a checkpoint atomically: a reader sees the old file or the new one."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={METADATA_KEY: metadata.model_dump_json()})
    partial.replace(path)


def describe_architecture(model: ResNet) -> dict[str, object]:
    """Return the fields of the network's architecture."""
    return asdict(model.spec)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is safetensors with metadata of ours in its header."""
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_checkpoint(path: Path) -> tuple[ResNet, CheckpointMetadata]:
    """Return the network in evaluation mode, and its metadata.

    Raises:
        CheckpointError: no such file, not safetensors, no metadata of ours, or tensors that do not fit.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            if text is None:
                raise CheckpointError(
                    f"{path} has no metadata of ours: it was not written by `residuum train`"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = CheckpointMetadata.model_validate_json(text)
        fields = {name: _as_tuple(value) for name, value in metadata.architecture.items()}
        model = ResNet(Architecture(**fields))  # type: ignore[arg-type]
        model.load_state_dict(tensors)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold the network that it describes: {error}") from error
    return model.eval(), metadata


def _as_tuple(value: object) -> object:
    """Return JSON's lists, also nested ones, as tuples; other values as they are."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
