"""Augmentation of whole batches on the device, from a generator that the caller seeds.

Each function is pure: the same generator state gives the same batch. No function knows of epochs or files.

Shapes: N batch, H W space, K classes; images are float in [0, 1], [N, 3, H, W].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from models.pixels import normalise, to_unit_range
from models.training.recipe import Recipe


def augment(
    images_NHWC: Tensor, labels_N: Tensor, size: int, recipe: Recipe, g: Generator
) -> tuple[Tensor, Tensor]:
    """Return normalised floats [N, 3, size, size] and soft labels [N, K] for uint8 images and labels."""
    x = to_unit_range(images_NHWC)
    x = random_crop(x, size, recipe, g)
    if recipe.jitter:
        x = color_jitter(x, recipe.jitter, g)
    x = normalise(x, recipe.preprocessing())
    if recipe.erasing:
        x = random_erasing(x, recipe.erasing, g)
    target_NK = F.one_hot(labels_N, recipe.num_classes).float()
    if recipe.mixup or recipe.cutmix:
        x, target_NK = mix(x, target_NK, recipe.mixup, recipe.cutmix, g)
    return x.contiguous(memory_format=torch.channels_last), target_NK


def uniform(n: int, low: float, high: float, g: Generator) -> Tensor:
    """Return n numbers in [low, high)."""
    return torch.rand(n, generator=g, device=g.device) * (high - low) + low


def random_crop(x_NCHW: Tensor, size: int, recipe: Recipe, g: Generator) -> Tensor:
    """Crop and resize (area in `crop_scale`, aspect 3:4 to 4:3), or shift by `crop_padding`; and flip.

    One affine grid does crop, resize and flip. A crop larger than the image (an area above 1) shows the image
    smaller, and mirrored at its borders. Shrinking is antialiased: the grid has a whole multiple of `size`,
    and its cells are averaged.
    """
    n, _, height, width = x_NCHW.shape
    if recipe.crop_scale is None:
        # Shift up to `crop_padding` pixels either way; zeros (black) come in from outside, as in He et al.
        # 2016.
        scale_x = scale_y = torch.ones(n, device=g.device)
        pad = recipe.crop_padding
        shift_x = torch.randint(-pad, pad + 1, (n,), generator=g, device=g.device) * 2 / width
        shift_y = torch.randint(-pad, pad + 1, (n,), generator=g, device=g.device) * 2 / height
        outside = "zeros"
    else:
        area = uniform(n, *recipe.crop_scale, g)
        aspect = torch.exp(uniform(n, -1.0, 1.0, g) * math.log(4 / 3))
        largest = max(1.0, recipe.crop_scale[1] ** 0.5)
        scale_x = (area * aspect).sqrt().clamp(max=largest)
        scale_y = (area / aspect).sqrt().clamp(max=largest)
        shift_x = uniform(n, -1.0, 1.0, g) * (1 - scale_x)
        shift_y = uniform(n, -1.0, 1.0, g) * (1 - scale_y)
        outside = "reflection"
    if recipe.flip:
        scale_x = torch.where(torch.rand(n, generator=g, device=g.device) < 0.5, -scale_x, scale_x)
    zero = torch.zeros_like(scale_x)
    theta_N23 = torch.stack(
        [torch.stack([scale_x, zero, shift_x], 1), torch.stack([zero, scale_y, shift_y], 1)], 1
    )
    oversampling = math.ceil(min(height, width) / size)
    grid = F.affine_grid(theta_N23, [n, 3, size * oversampling, size * oversampling], align_corners=False)
    x_NCHW = F.grid_sample(x_NCHW, grid, mode="bilinear", padding_mode=outside, align_corners=False)
    return F.avg_pool2d(x_NCHW, oversampling) if oversampling > 1 else x_NCHW


def color_jitter(x_NCHW: Tensor, strength: float, g: Generator) -> Tensor:
    """Scale brightness, contrast and saturation, each by a factor in [1 - strength, 1 + strength]."""
    brightness, contrast, saturation = (
        uniform(len(x_NCHW), 1 - strength, 1 + strength, g).reshape(-1, 1, 1, 1) for _ in range(3)
    )
    x_NCHW = x_NCHW * brightness
    grey = (x_NCHW * x_NCHW.new_tensor([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    x_NCHW = torch.lerp(grey.expand_as(x_NCHW), x_NCHW, saturation)
    mean = grey.mean((2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(x_NCHW), x_NCHW, contrast).clamp(0, 1)


def _boxes(n: int, height: int, width: int, area: Tensor, g: Generator) -> Tensor:
    """Return masks [N, 1, H, W], True in a box with the share `area` of the image and a random centre."""
    side = area.sqrt().reshape(-1, 1, 1, 1)
    center_y, center_x = (uniform(n, 0.0, 1.0, g).reshape(-1, 1, 1, 1) for _ in range(2))
    rows = (torch.arange(height, device=g.device) + 0.5).reshape(1, 1, -1, 1) / height
    columns = (torch.arange(width, device=g.device) + 0.5).reshape(1, 1, 1, -1) / width
    return ((rows - center_y).abs() < side / 2) & ((columns - center_x).abs() < side / 2)


def random_erasing(x_NCHW: Tensor, probability: float, g: Generator) -> Tensor:
    """Set a box of 2 to 33 % of the area to the mean (arXiv 1708.04896)."""
    n, _, height, width = x_NCHW.shape
    chosen = torch.rand(n, generator=g, device=g.device) < probability
    boxes = _boxes(n, height, width, uniform(n, 0.02, 0.33, g), g)
    return x_NCHW.masked_fill(boxes & chosen.reshape(-1, 1, 1, 1), 0.0)


def mix(
    x_NCHW: Tensor, target_NK: Tensor, mixup: float, cutmix: float, g: Generator
) -> tuple[Tensor, Tensor]:
    """Mix every image with another of its batch: Mixup (arXiv 1710.09412) or CutMix (arXiv 1905.04899).

    `mixup` and `cutmix` are the alpha of Beta(alpha, alpha). If both are given, each batch uses one of them
    with equal probability.
    """
    n, _, height, width = x_NCHW.shape
    order = torch.randperm(n, generator=g, device=g.device)
    use_cutmix = cutmix > 0 and (not mixup or torch.rand(1, generator=g, device=g.device).item() < 0.5)
    alpha = torch.full((n, 2), cutmix if use_cutmix else mixup, device=g.device)
    # A Dirichlet distribution of two equal parts is Beta(alpha, alpha); torch's Beta takes no generator.
    weight = torch._sample_dirichlet(alpha, generator=g)[:, 0]
    if use_cutmix:
        boxes = _boxes(n, height, width, 1 - weight, g)
        x_NCHW = torch.where(boxes, x_NCHW[order], x_NCHW)
        weight = 1 - boxes.float().mean((1, 2, 3))
    else:
        x_NCHW = torch.lerp(x_NCHW[order], x_NCHW, weight.reshape(-1, 1, 1, 1))
    return x_NCHW, torch.lerp(target_NK[order], target_NK, weight.reshape(-1, 1))
