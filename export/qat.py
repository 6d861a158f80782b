"""Quantization-aware fine-tuning: weights adapt to the rounding of int8 before they are quantized.

The network is fused, and rounds where the int8 graph will: weights by channel, and the inputs of
convolutions, head and residual additions in the ranges that calibration found. Inside the range, gradients
pass through rounding unchanged (Bengio et al. 2013, arXiv 1308.3432). The exact network is the teacher, so no
labels are needed. `quantize` then calibrates the result again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from tqdm import tqdm  # type: ignore[import-untyped]

from artifact.manifest import Preprocessing
from export.calibrate import Range, calibrate
from export.fuse import fuse_batchnorm
from export.qdq import LARGEST_WEIGHT
from models.blocks import ResidualBlock
from models.pixels import normalised
from models.resnet import ResNet

NUM_IMAGES = 20_000  # of an epoch at most, because they are held in memory
LEARNING_RATE = 1e-5  # of Adam; falls to 0 along a cosine
BATCH_SIZE = 64


class Rounding(nn.Module):
    """Rounds activations once it has a range; before, it stores its last input in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.range: Range | None = None
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.range is None:
            self.seen = x.detach()
            return x
        scale = max((self.range.high - self.range.low) / 255, 1e-20)
        return straight_through(x.clamp(self.range.low, self.range.high), scale)


class RoundedLayer(nn.Module):
    """A convolution or the head as in the int8 graph: rounded input and weights, corrected bias."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight_bits: int) -> None:
        super().__init__()
        self.layer = layer
        self.largest = LARGEST_WEIGHT[weight_bits]
        self.input = Rounding()
        self.correction: Tensor | None = None
        self.errors: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.input.range is None or self.correction is None:
            y: Tensor = self.layer(self.input(x) if self.input.range is None else x)
            if self.input.range is not None:
                error = y - self.rounded(x)
                self.errors.append(error.transpose(0, 1).flatten(1).mean(1))
            return y
        y = self.rounded(x)
        return y + self.correction.reshape(-1, *[1] * (y.ndim - 2))

    def rounded(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        scale = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-20) / self.largest
        weight = straight_through(weight, scale.reshape(-1, *[1] * (weight.ndim - 1)))
        y: Tensor = functional_call(self.layer, {"weight": weight}, (self.input(x),))
        return y

    def correct(self) -> None:
        """Set the correction to the mean of the observed errors, as `export.quantize` does."""
        self.correction = torch.stack(self.errors).mean(0)
        self.errors.clear()


def straight_through(x: Tensor, scale: Tensor | float) -> Tensor:
    """Return the nearest multiple of `scale`; its gradient is that of x."""
    return x + (torch.round(x.detach() / scale) * scale - x.detach())


def fine_tune_under_rounding(
    model: ResNet,
    preprocessing: Preprocessing,
    calibration_NHW3: NDArray[np.uint8],
    train_NHW3: NDArray[np.uint8],
    epochs: int,
    *,
    weight_bits: int = 7,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
) -> ResNet:
    """Return the fused network with fine-tuned weights, in evaluation mode; `model` stays as it is.

    Args:
        calibration_NHW3, train_NHW3: preprocessed as for serving, uint8 [N, crop, crop, 3].
    """
    teacher = fuse_batchnorm(model).eval()
    student = fuse_batchnorm(model).eval()
    add_rounding(student, weight_bits)
    start_rounding(student, calibration_NHW3, preprocessing)
    optimizer = torch.optim.Adam(student.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    num_steps = epochs * -(-len(train_NHW3) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    with tqdm(total=num_steps, unit="step", mininterval=1) as bar:
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(train_NHW3), generator=generator), BATCH_SIZE):
                x_NCHW = normalised(train_NHW3[chosen.numpy()], preprocessing)
                if torch.rand(1, generator=generator) < 0.5:
                    x_NCHW = x_NCHW.flip(3)
                loss = _divergence(student(x_NCHW), teacher, x_NCHW)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.5f}")
                bar.update()
    return _without_rounding(student)


def _divergence(logits_NK: Tensor, teacher: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Return the KL divergence of the student's classes from the teacher's, averaged over images."""
    with torch.no_grad():
        wanted_NK = F.log_softmax(teacher(x_NCHW), 1)
    return F.kl_div(F.log_softmax(logits_NK, 1), wanted_NK, reduction="batchmean", log_target=True)


def add_rounding(network: ResNet, weight_bits: int) -> None:
    """Insert modules where the int8 graph rounds; they do nothing before `start_rounding`."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, RoundedLayer(module, weight_bits))
        if isinstance(module, ResidualBlock):
            module.add_module("rounded_paths", rounded := _RoundedPaths(module))
            module.paths = rounded.forward  # type: ignore[method-assign]


class _RoundedPaths(nn.Module):
    """`ResidualBlock.paths` with rounded outputs."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.exact = block.paths
        self.shortcut, self.residual = Rounding(), Rounding()

    def forward(self, x_NCHW: Tensor) -> tuple[Tensor | None, Tensor]:
        shortcut, residual = self.exact(x_NCHW)
        if shortcut is None:
            return None, residual
        return self.shortcut(shortcut), self.residual(residual)


@torch.no_grad()
def start_rounding(network: ResNet, images_NHW3: NDArray[np.uint8], preprocessing: Preprocessing) -> None:
    """Set the ranges and bias corrections from images, and begin to round."""
    roundings = {name: m for name, m in network.named_modules() if isinstance(m, Rounding)}
    layers = [module for module in network.modules() if isinstance(module, RoundedLayer)]
    additions = [roundings[name] for name in roundings if name.rpartition(".")[2] in ("shortcut", "residual")]

    def observe() -> Iterator[dict[str, NDArray[np.float32]]]:
        for start in range(0, len(images_NHW3), 16):
            network(normalised(images_NHW3[start : start + 16], preprocessing))
            yield {name: place.seen.numpy() for name, place in roundings.items() if place.seen is not None}

    ranges = calibrate(observe, 256, signed=False)
    for layer in layers:
        layer.input.seen = None
    for name, bounds in ranges.items():
        if roundings[name] not in additions:
            roundings[name].range = bounds
    for _ in observe():  # each layer reads the input that the exact network gives it
        pass
    for layer in layers:
        layer.correct()
    for name, bounds in ranges.items():
        roundings[name].range, roundings[name].seen = bounds, None


def _without_rounding(network: ResNet) -> ResNet:
    """Return the network with the fine-tuned weights and without rounding, which `quantize` adds again."""
    for name, module in list(network.named_modules()):
        if isinstance(module, RoundedLayer):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, module.layer)
        if isinstance(module, ResidualBlock):
            del module.paths, module.rounded_paths
    return network
