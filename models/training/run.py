"""What a run carries from step to step, how it is saved and resumed, and the checkpoint it ends with."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from torch import nn

from artifact.errors import ResiduumError
from artifact.manifest import Accuracy
from models.checkpoint import (
    CheckpointError,
    CheckpointMetadata,
    describe_architecture,
    load_checkpoint,
    save_checkpoint,
)
from models.resnet import ResNet, build
from models.training.data import ImageSet
from models.training.recipe import Recipe

STATE_FILE = "last.ckpt"
CHECKPOINT_FILE = "checkpoint.safetensors"


class TrainingError(ResiduumError):
    """The run cannot start or go on; the message says why and at which step."""


def make_fabric(recipe: Recipe, accelerator: str, out: Path) -> Fabric:
    """One process, or as many as `torchrun` started; bf16 where the machine has it."""
    torchrun = "LOCAL_WORLD_SIZE" in os.environ
    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = choose_device(accelerator, num_local)
    torch.backends.cudnn.deterministic = True
    fabric = Fabric(
        accelerator=device,
        devices=num_local,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy="ddp" if torchrun else "auto",
        precision=_precision(recipe, device),  # type: ignore[arg-type]
        loggers=TensorBoardLogger(out, name="tensorboard", version=""),
    )
    fabric.launch()
    if recipe.batch_size % fabric.world_size:
        raise TrainingError(
            f"batch_size {recipe.batch_size} does not split over {fabric.world_size} processes"
        )
    return fabric


def choose_device(device: str, num_local: int) -> str:
    """ "cpu" or "cuda".

    Raises:
        TrainingError: fewer GPUs than processes on this machine.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.device_count() < num_local:
        raise TrainingError(f"--device cuda: {num_local} needed, torch sees {torch.cuda.device_count()}")
    return device


def _precision(recipe: Recipe, device: str) -> str:
    """bf16 only where there is arithmetic for it: emulated, it is slower than fp32."""
    if recipe.precision != "auto":
        return recipe.precision
    if device == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def make_state(recipe: Recipe, fabric: Fabric, network: ResNet | None = None) -> dict[str, Any]:
    """Network, optimizer, moving average and counters: all that a run carries from step to step.

    The network is a copy of `network`, or else what the recipe says.
    """
    model = _build(recipe) if network is None else copy.deepcopy(network)
    model.checkpoint_blocks = recipe.checkpoint_blocks
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(model).requires_grad_(False) if recipe.ema_decay else None
    # Not dynamic: every resolution gets kernels of its own, the same ones after a resume.
    compiled = torch.compile(model, dynamic=False) if recipe.compile else model
    wrapped, optimizer = fabric.setup(compiled, make_optimizer(recipe, model))
    if ema is not None:
        ema.to(fabric.device)
    return {
        "model": wrapped,
        "optimizer": optimizer,
        "ema": ema,
        "step": 0,
        "losses": [],  # of the epoch under way
        "train_loss": float("nan"),  # of the epoch before it
        "history": [],
        "recipe": asdict(recipe),
        "commit": _commit(),
    }


def _build(recipe: Recipe) -> ResNet:
    changes: dict[str, object] = {"num_classes": recipe.num_classes}
    for name in ("width", "dropout", "stochastic_depth"):
        if (value := getattr(recipe, name)) is not None:
            changes[name] = value
    model = build(
        recipe.architecture,
        seed=recipe.seed,
        zero_init_branch=recipe.zero_init_branch,
        initialisation=recipe.initialisation,
        **changes,
    )
    if recipe.initial_weights is not None:
        _load_initial(model, Path(recipe.initial_weights))
    return model


def _load_initial(model: ResNet, path: Path) -> None:
    try:
        weights, _ = load_checkpoint(path)
        model.load_state_dict(weights.state_dict())
    except (CheckpointError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"initial_weights {path} do not fit {model.spec.name}: {reason}") from error


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Move the average towards the network; at first faster than `decay` says, to forget the beginning."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for mean, tensor in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(tensor, weight)
        else:
            mean.copy_(tensor)


def same_statistics(fabric: Fabric, network: nn.Module) -> None:
    """BatchNorm buffers of process 0 in all: each has seen other images since the last forward pass."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def check_finite(state: dict[str, Any]) -> None:
    """Before weights are saved: a finite loss may still have had a gradient that was not.

    Raises:
        TrainingError: a parameter is NaN or infinite.
    """
    for name, parameter in network_of(state, averaged=False).named_parameters():
        if not bool(parameter.isfinite().all()):
            raise TrainingError(
                f"{name} is no longer finite after step {state['step']}: try a lower learning_rate"
            )


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """No weight decay on norms and biases, which are the tensors of one dimension."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
    )


def save_state(fabric: Fabric, state: dict[str, Any], out: Path) -> None:
    """Replace the state to resume from in one step, so that a kill leaves the old one or the new one."""
    partial = out / f"{STATE_FILE}.partial"
    fabric.save(partial, state)
    if fabric.is_global_zero:
        partial.replace(out / STATE_FILE)
    fabric.barrier()


def restore_state(fabric: Fabric, state: dict[str, Any], out: Path) -> None:
    """Load the saved state into `state`.

    Raises:
        TrainingError: it belongs to another recipe or other data, or cannot be read.
    """
    path = out / STATE_FILE
    advice = "choose another folder, or --no-resume to start anew"
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        then, now = saved["recipe"], state["recipe"]
        # A field that is newer than the run has its default.
        defaults = {field.name: field.default for field in fields(Recipe)}
        changed = sorted(key for key in now if then.get(key, defaults[key]) != now[key])
        if changed:
            raise TrainingError(f"{out} holds a run with another {', '.join(changed)}; {advice}")
        if saved["data"] != state["data"]:
            raise TrainingError(f"{out} holds a run on other data or another number of processes; {advice}")
        fabric.load(path, state)
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).split("\n")[0]
        raise TrainingError(f"cannot resume from {path}: {reason}; {advice}") from error
    state["recipe"] = now


def write_checkpoint(
    fabric: Fabric, recipe: Recipe, state: dict[str, Any], valid_set: ImageSet, out: Path
) -> Path:
    path = out / CHECKPOINT_FILE
    network = network_of(state)
    last = state["history"][-1]
    if fabric.is_global_zero:
        metadata = CheckpointMetadata(
            architecture=describe_architecture(network),
            labels=valid_set.classes,
            preprocessing=recipe.preprocessing(),
            recipe=asdict(recipe),
            dataset=Path(valid_set.name).name,
            commit=state["commit"],
            seed=recipe.seed,
            accuracy=Accuracy(
                dataset=Path(valid_set.name).name,
                num_images=len(valid_set),
                top1=last["valid_top1"],
                top5=last["valid_top5"],
            ),
            history=tuple(state["history"]),
        )
        save_checkpoint(path, network, metadata)
    fabric.barrier()
    return path


def network_of(state: dict[str, Any], *, averaged: bool = True) -> ResNet:
    """The network without Fabric's wrappers; the moving average, which is what is kept, if there is one."""
    network = state["ema"] if averaged and state["ema"] is not None else state["model"].module
    assert isinstance(network, ResNet)
    return network


def _commit() -> str | None:
    """This checkout's commit, with `+` where files differ from it; None outside of one."""
    here = Path(__file__).resolve().parents[2]
    with suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(here)]
        top = subprocess.run(
            [*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True
        )
        if Path(top.stdout.strip()).resolve() == here:
            command = [*git, "describe", "--always", "--dirty=+", "--abbrev=12"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
