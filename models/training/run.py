"""How a training run starts (devices, network, optimizer), and the checkpoint that it ends with."""

from __future__ import annotations

import copy
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from torch import Tensor, nn

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
from models.training.state import TrainingError, TrainingState

CHECKPOINT_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Run:
    """What the functions of a run share.

    Attributes:
        images, labels: the training set on the device, uint8 [num_images, H, W, 3] and int64 [num_images].
        out: the directory for logs, curves, the state and the checkpoint.
    """

    recipe: Recipe
    fabric: Fabric
    state: TrainingState
    images: Tensor
    labels: Tensor
    valid_set: ImageSet
    out: Path

    @property
    def steps_per_epoch(self) -> int:
        return len(self.labels) // self.recipe.batch_size

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs

    @property
    def progress(self) -> float:
        """The finished part of the run, in [0, 1]."""
        return self.state.step / self.num_steps


def make_fabric(recipe: Recipe, accelerator: str, out: Path) -> Fabric:
    """Return the Fabric of one process, or of those that `torchrun` started; bf16 if the machine has it."""
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
    """Return "cpu" or "cuda".

    Raises:
        TrainingError: fewer GPUs than processes on this machine.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.device_count() < num_local:
        raise TrainingError(f"--device cuda: {num_local} needed, torch sees {torch.cuda.device_count()}")
    return device


def _precision(recipe: Recipe, device: str) -> str:
    """Return Fabric's precision; bf16 only with bf16 arithmetic: emulated, it is slower than fp32."""
    if recipe.precision != "auto":
        return recipe.precision
    if device == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if has_bf16 else "32-true"


def make_state(recipe: Recipe, fabric: Fabric, data: list[int], network: ResNet | None) -> TrainingState:
    """Return the state before the first step; `network` is copied, None: built as the recipe says.

    Args:
        data: see `TrainingState`.
    """
    model = _build(recipe) if network is None else copy.deepcopy(network)
    model.checkpoint_blocks = recipe.checkpoint_blocks
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = copy.deepcopy(model).requires_grad_(False) if recipe.ema_decay else None
    # Not dynamic: each resolution gets its own kernels, and the same ones after a resume.
    compiled = torch.compile(model, dynamic=False) if recipe.compile else model
    wrapped, optimizer = fabric.setup(compiled, make_optimizer(recipe, model))
    if ema is not None:
        ema.to(fabric.device)
    return TrainingState(wrapped, optimizer, ema, recipe=asdict(recipe), commit=_commit(), data=data)


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


def same_statistics(fabric: Fabric, network: nn.Module) -> None:
    """Copy the BatchNorm buffers of process 0 to all processes: each has seen other images."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


def make_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimizer without weight decay on norms and biases, the tensors of one dimension."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return torch.optim.SGD(
        groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.momentum > 0
    )


def write_checkpoint(run: Run) -> Path:
    """Write the network that the run ended with, and return the file's path."""
    path = run.out / CHECKPOINT_FILE
    state, recipe, dataset = run.state, run.recipe, Path(run.valid_set.name).name
    last = state.history[-1]
    if run.fabric.is_global_zero:
        metadata = CheckpointMetadata(
            architecture=describe_architecture(state.kept),
            labels=run.valid_set.classes,
            preprocessing=recipe.preprocessing(),
            recipe=asdict(recipe),
            dataset=dataset,
            commit=state.commit,
            seed=recipe.seed,
            accuracy=Accuracy(
                dataset=dataset,
                num_images=len(run.valid_set),
                top1=last["valid_top1"],
                top5=last["valid_top5"],
            ),
            history=tuple(state.history),
        )
        save_checkpoint(path, state.kept, metadata)
    run.fabric.barrier()
    return path


def _commit() -> str | None:
    """Return this checkout's commit, with `+` if files differ from it; None if it is not a checkout."""
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
