"""What a run carries from step to step, how it is saved and resumed, and the checkpoint it ends with."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.checkpoint import CheckpointMetadata, describe_architecture, save_checkpoint
from models.manifest import Accuracy
from models.resnet import ResNet, build
from models.training.data import ImageSet
from models.training.recipe import Recipe

STATE_FILE = "last.ckpt"
CHECKPOINT_FILE = "checkpoint.safetensors"


class TrainingError(Exception):
    """The run cannot start or go on; the message says why and at which step."""


def make_fabric(recipe: Recipe, accelerator: str, out: Path) -> Fabric:
    """One process, or as many as `torchrun` started; bf16 where the machine has it."""
    torchrun = "LOCAL_WORLD_SIZE" in os.environ
    fabric = Fabric(
        accelerator=accelerator,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", 1)),
        strategy="ddp" if torchrun else "auto",
        precision=_precision(recipe, accelerator),  # type: ignore[arg-type]
        loggers=TensorBoardLogger(out, name="tensorboard", version=""),
    )
    fabric.launch()
    if recipe.batch_size % fabric.world_size:
        raise TrainingError(
            f"batch_size {recipe.batch_size} does not split over {fabric.world_size} processes"
        )
    return fabric


def _precision(recipe: Recipe, accelerator: str) -> str:
    if recipe.precision != "auto":
        return recipe.precision
    has_bf16 = (
        torch.cuda.is_bf16_supported()
        if accelerator != "cpu" and torch.cuda.is_available()
        else torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return "bf16-mixed" if has_bf16 else "32-true"


def make_state(recipe: Recipe, fabric: Fabric) -> dict[str, Any]:
    """Network, optimizer, moving average and counters: all that a run carries from step to step."""
    changes: dict[str, object] = {"num_classes": recipe.num_classes}
    if recipe.width is not None:
        changes["width"] = recipe.width
    model = build(recipe.architecture, seed=recipe.seed, zero_init_branch=recipe.zero_init_branch, **changes)
    model.checkpoint_blocks = recipe.checkpoint_blocks
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = None
    if recipe.ema_decay:
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay), use_buffers=True)
    compiled = torch.compile(model) if recipe.compile else model
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


def restore_state(fabric: Fabric, state: dict[str, Any], recipe: Recipe, out: Path) -> None:
    then = torch.load(out / STATE_FILE, map_location="cpu", mmap=True, weights_only=True)["recipe"]
    now = asdict(recipe)
    if changed := sorted(key for key in now if then.get(key) != now[key]):
        raise TrainingError(
            f"{out} holds a run with another {', '.join(changed)}; "
            "choose another folder, or --no-resume to start anew"
        )
    fabric.load(out / STATE_FILE, state)


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


def network_of(state: dict[str, Any]) -> ResNet:
    """The network that is evaluated and kept: the moving average, where there is one."""
    model = state["ema"].module if state["ema"] is not None else unwrapped(state["model"])
    assert isinstance(model, ResNet)
    return model


def unwrapped(model: Any) -> nn.Module:
    """Without Fabric's, DDP's and torch.compile's wrappers."""
    module = model.module
    return getattr(module, "_orig_mod", module)  # type: ignore[no-any-return]


def _commit() -> str | None:
    """The checkout's commit, with `+` where files differ from it; None outside of one."""
    with suppress(OSError, subprocess.CalledProcessError):
        command = [
            "git",
            "-C",
            str(Path(__file__).parent),
            "describe",
            "--always",
            "--dirty=+",
            "--abbrev=12",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return None
