"""The training loop.

Every random choice of step i is drawn from (seed, i) alone, so a killed run that is resumed from its last
saved step ends with the same weights as an uninterrupted one. Lightning Fabric looks after devices, processes
and mixed precision: under `torchrun` each process takes its slice of every batch.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from models.pixels import normalise, normalised, to_unit_range
from models.resnet import ResNet
from models.statistics import estimate_statistics
from models.training.augment import augment
from models.training.data import ImageSet
from models.training.plots import plot_curves
from models.training.recipe import Recipe
from models.training.run import Run, make_fabric, make_state, same_statistics, write_checkpoint
from models.training.state import STATE_FILE, TrainingError

CURE = "try a lower learning_rate, a longer warmup_epochs, or clip_norm"
NUM_LOSSES_KEPT = 50  # losses are read from the device this many at a time: reading each would stall a GPU
NUM_RECALIBRATION_IMAGES = 10_000


def train(
    recipe: Recipe,
    train_set: ImageSet,
    valid_set: ImageSet,
    out: Path,
    *,
    network: ResNet | None = None,
    resume: bool = True,
    accelerator: str = "auto",
    save_every: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Train as `recipe` says and return the path of the checkpoint.

    Args:
        train_set: images of `recipe.store_size`; valid_set: of `recipe.test_crop`.
        out: folder for logs, curves, the state to resume from and the checkpoint.
        network: train a copy of it; None: what the recipe builds.
        resume: go on from the state in `out`, if there is one.
        save_every: steps between saved states; None: once an epoch.
        on_step: called with the number of finished steps.

    Raises:
        TrainingError: labels that do not fit the recipe, a saved run of another recipe,
            or a loss that is not finite.
    """
    _check_sets(recipe, train_set, valid_set)
    out.mkdir(parents=True, exist_ok=True)
    fabric = make_fabric(recipe, accelerator, out)
    if len(train_set) < recipe.batch_size:
        raise TrainingError(f"{len(train_set)} images do not fill one batch of {recipe.batch_size}")
    state = make_state(recipe, fabric, [len(train_set), len(valid_set), fabric.world_size], network)
    if resume and (out / STATE_FILE).is_file():
        state.restore(fabric, out)
    elif fabric.is_global_zero:
        (out / STATE_FILE).unlink(missing_ok=True)
    images, labels = train_set.images.to(fabric.device), train_set.labels.to(fabric.device)
    run = Run(recipe, fabric, state, images, labels, valid_set, out)
    _train(run, save_every, on_step)
    if recipe.recalibrate:
        recalibrate(state.kept, images, recipe)
    _record(run, recipe.epochs)
    return write_checkpoint(run)


def _train(run: Run, save_every: int | None, on_step: Callable[[int], None] | None) -> None:
    """Take the steps that are left."""
    state, recipe = run.state, run.recipe
    pending: list[Tensor] = []
    bar = tqdm(
        total=run.num_steps,
        initial=state.step,
        unit="step",
        disable=not run.fabric.is_global_zero,
        mininterval=1,
    )
    for step in range(state.step, run.num_steps):
        size = recipe.resolution(run.progress)
        pending.append(train_step(run))
        state.step = step + 1
        epoch, position = divmod(state.step, run.steps_per_epoch)
        save_now = position == 0 or (save_every is not None and state.step % save_every == 0)
        if save_now or len(pending) == NUM_LOSSES_KEPT:
            state.losses += _finite(pending, state.step)
            bar.set_postfix(loss=f"{state.losses[-1]:.3f}", size=size)
        bar.update()
        if position == 0:
            state.train_loss, state.losses = sum(state.losses) / len(state.losses), []
            if epoch % recipe.validate_every == 0 and epoch < recipe.epochs:
                _record(run, epoch)
        if save_now:
            state.check_finite()
            state.save(run.fabric, run.out)
        if on_step:
            on_step(state.step)
    bar.close()


def train_step(run: Run) -> Tensor:
    """Update the weights once, and return the loss, detached and still on the device."""
    recipe, fabric, state = run.recipe, run.fabric, run.state
    step = state.step
    torch.manual_seed(_seed(recipe.seed, step, fabric.global_rank))
    generator = torch.Generator(fabric.device).manual_seed(_seed(recipe.seed, step, fabric.global_rank))
    indices = batch_indices(step, len(run.labels), recipe)[fabric.global_rank :: fabric.world_size].to(
        fabric.device
    )
    size = recipe.resolution(run.progress)
    x_NCHW, target_NK = augment(run.images[indices], run.labels[indices], size, recipe, generator)
    for group in state.optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(run.progress)
    state.model.train()
    loss = F.cross_entropy(state.model(x_NCHW), target_NK, label_smoothing=recipe.label_smoothing)
    state.optimizer.zero_grad()
    fabric.backward(loss)
    if recipe.clip_norm:
        fabric.clip_gradients(
            state.model, state.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
        )
    state.optimizer.step()
    if recipe.ema_decay:
        state.update_average(step, recipe.ema_decay)
    return loss.detach()


def batch_indices(step: int, num_images: int, recipe: Recipe) -> Tensor:
    """Return the images of a step. Each epoch is a permutation without its incomplete last batch."""
    epoch, position = divmod(step, num_images // recipe.batch_size)
    start = position * recipe.batch_size
    return _permutation(num_images, _seed(recipe.seed, epoch, -1))[start : start + recipe.batch_size]


@lru_cache(maxsize=1)
def _permutation(num_images: int, seed: int) -> Tensor:
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))


def _seed(seed: int, number: int, stream: int) -> int:
    return (seed * 1_000_003 + number) * 1_009 + stream + 1


def recalibrate(network: nn.Module, images_NHW3: Tensor, recipe: Recipe) -> None:
    """Replace the BatchNorm statistics by their mean over training images, preprocessed as for serving.

    Every process uses the same images, so that all end with the same statistics.
    """
    generator = torch.Generator().manual_seed(_seed(recipe.seed, 0, -1))
    chosen = torch.randperm(len(images_NHW3), generator=generator)[:NUM_RECALIBRATION_IMAGES]
    # All batches weigh the same in the mean, so a smaller last batch is left out.
    chosen = chosen[: len(chosen) // 256 * 256 or None]
    batches = chosen.to(images_NHW3.device).split(256)
    estimate_statistics(network, (as_served(images_NHW3[batch], recipe) for batch in batches))


def as_served(images_NHW3: Tensor, recipe: Recipe) -> Tensor:
    """Return stored training images as in validation: normalised floats [N, 3, crop, crop]."""
    x = to_unit_range(images_NHW3)
    if recipe.store_size != recipe.test_resize:
        x = F.interpolate(x, size=recipe.test_resize, mode="bilinear", antialias=True, align_corners=False)
    margin = (recipe.test_resize - recipe.test_crop) // 2
    x = x[:, :, margin : margin + recipe.test_crop, margin : margin + recipe.test_crop]
    return normalise(x, recipe.preprocessing()).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def evaluate(
    model: nn.Module, images: ImageSet, recipe: Recipe, fabric: Fabric
) -> tuple[float, float, float]:
    """Return loss, top-1 and top-5 in [0, 1] over `images`, of which every process computes a share."""
    model.eval()
    totals = torch.zeros(3, device=fabric.device)  # sums of loss, top-1 and top-5
    indices = torch.arange(fabric.global_rank, len(images), fabric.world_size)
    for chunk in indices.split(256):
        labels = images.labels[chunk].to(fabric.device)
        x_NCHW = normalised(images.images[chunk].to(fabric.device), recipe.preprocessing())
        with fabric.autocast():
            logits = model(x_NCHW).float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([loss, best[:, 0].sum(), best.sum()])
    loss, top1, top5 = (fabric.all_reduce(totals, reduce_op="sum") / len(images)).tolist()
    return loss, top1, top5


def _record(run: Run, epoch: int) -> None:
    """Validate, then write the row to the history, CSV, TensorBoard and the curves."""
    state, recipe = run.state, run.recipe
    same_statistics(run.fabric, state.kept)
    loss, top1, top5 = evaluate(state.kept, run.valid_set, recipe, run.fabric)
    if not math.isfinite(loss):
        raise TrainingError(f"the validation loss became {loss} after step {state.step}: {CURE}")
    row = {
        "epoch": epoch,
        "step": state.step,
        "learning_rate": recipe.learning_rate_at(run.progress),
        "train_loss": state.train_loss,
        "valid_loss": loss,
        "valid_top1": top1,
        "valid_top5": top5,
    }
    state.history = [earlier for earlier in state.history if earlier["epoch"] < epoch] + [row]
    run.fabric.log_dict(row, step=state.step)
    if run.fabric.is_global_zero:
        with (run.out / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(state.history)
        plot_curves(state.history, recipe.name, run.out / "curves.png")
        tqdm.write(
            f"epoch {epoch}: loss {row['train_loss']:.3f}, valid {loss:.3f}, "
            f"top-1 {top1:.2%}, top-5 {top5:.2%}"
        )


def _finite(pending: list[Tensor], step: int) -> list[float]:
    """Return the pending losses of the steps before `step` as numbers, and empty `pending`."""
    values = torch.stack(pending)
    bad = (~torch.isfinite(values)).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise TrainingError(
            f"the loss became {values[first].item()} at step {step - len(pending) + first}: {CURE}"
        )
    pending.clear()
    return values.tolist()


def _check_sets(recipe: Recipe, train_set: ImageSet, valid_set: ImageSet) -> None:
    if train_set.classes != valid_set.classes:
        raise TrainingError(f"{train_set.name}: the training and the validation split name different classes")
    for images, size in ((train_set, recipe.store_size), (valid_set, recipe.test_crop)):
        if len(images.classes) != recipe.num_classes:
            raise TrainingError(
                f"{images.name} has {len(images.classes)} classes, the recipe {recipe.num_classes}: "
                f"--set num_classes={len(images.classes)}"
            )
        if len(images) == 0 or images.images.shape[1:] != (size, size, 3):
            raise TrainingError(
                f"{images.name}: expected images of {size} pixels, got {tuple(images.images.shape)}"
            )
