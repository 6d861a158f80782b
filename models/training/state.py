"""The state of a training run: what it carries from step to step, and how that is saved and restored."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import nn

from artifact.errors import ResiduumError
from models.resnet import ResNet
from models.training.recipe import Recipe

STATE_FILE = "last.ckpt"


class TrainingError(ResiduumError):
    """The run cannot start or go on; the message says why and at which step."""


@dataclass
class TrainingState:
    """What a run carries from step to step.

    The saved file has the same names: renaming one would break the resuming of older runs.

    Attributes:
        model: the network as Fabric wraps it.
        ema: the moving average of the network; None: the recipe asks for none.
        recipe: the fields of the `Recipe`.
        commit: of this checkout; None: unknown.
        data: number of training images, of validation images and of processes.
        step: number of finished steps.
        losses: of the current epoch's steps.
        train_loss: mean loss of the last finished epoch.
        history: one row for each validation.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ResNet | None
    recipe: dict[str, object]
    commit: str | None
    data: list[int]
    step: int = 0
    losses: list[float] = field(default_factory=list)
    train_loss: float = math.nan
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def trained(self) -> ResNet:
        """The network that the optimizer changes, without Fabric's wrapper."""
        network = self.model.module
        assert isinstance(network, ResNet)
        return network

    @property
    def kept(self) -> ResNet:
        """The network that is validated and saved: the moving average if there is one."""
        return self.trained if self.ema is None else self.ema

    def save(self, fabric: Fabric, out: Path) -> None:
        """Replace the file in `out` in one step, so that a killed run leaves the old file or the new one."""
        partial = out / f"{STATE_FILE}.partial"
        fabric.save(partial, dict(vars(self)))
        if fabric.is_global_zero:
            partial.replace(out / STATE_FILE)
        fabric.barrier()

    def restore(self, fabric: Fabric, out: Path) -> None:
        """Load the file in `out`.

        Raises:
            TrainingError: it belongs to another recipe or other data, or cannot be read.
        """
        path = out / STATE_FILE
        advice = "choose another folder, or --no-resume to start over"
        now = self.recipe
        contents = dict(vars(self))
        try:
            saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            # A file from before a field of the recipe was added has run with the field's default.
            defaults = {field.name: field.default for field in fields(Recipe)}
            changed = sorted(key for key in now if saved["recipe"].get(key, defaults[key]) != now[key])
            if changed:
                raise TrainingError(f"{out} holds a run with another {', '.join(changed)}; {advice}")
            if saved["data"] != self.data:
                raise TrainingError(
                    f"{out} holds a run on other data or another number of processes; {advice}"
                )
            fabric.load(path, contents)
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).split("\n")[0]
            raise TrainingError(f"cannot resume from {path}: {reason}; {advice}") from error
        for name, value in contents.items():
            setattr(self, name, value)
        self.recipe = now

    @torch.no_grad()
    def update_average(self, step: int, decay: float) -> None:
        """Move the average towards the network, at first faster than `decay` says, to forget the start."""
        if self.ema is None:
            return
        weight = 1 - min(decay, (1 + step) / (10 + step))
        tensors = self.trained.state_dict().values()
        for mean, tensor in zip(self.ema.state_dict().values(), tensors, strict=True):
            if mean.is_floating_point():
                mean.lerp_(tensor, weight)
            else:
                mean.copy_(tensor)

    def check_finite(self) -> None:
        """Check the weights before they are saved: after a finite loss a gradient may still overflow.

        Raises:
            TrainingError: a parameter is NaN or infinite.
        """
        for name, parameter in self.trained.named_parameters():
            if not bool(parameter.isfinite().all()):
                raise TrainingError(
                    f"{name} is no longer finite after step {self.step}: try a lower learning_rate"
                )
