"""Reductions of large tensors in the introspect graph, each in as few passes as engines can do.

Shapes: N batch, C channels, H W space.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

HUGE = 1e30  # multiplied by it, every number that counts as positive exceeds 1


class Reductions:
    """The reductions of a tensor [N, C, H, W], in float32, computed once for each tensor."""

    def __init__(self) -> None:
        # Cast to float32 before squaring: the squares of 2048 channels of 6 exceed fp16's 65,504.
        self.exact = cache(lambda tensor_NCHW: tensor_NCHW.float())
        self.norm = cache(self._norm)
        self.mean = cache(self._mean)
        self.active = cache(self._active)

    def _norm(self, tensor_NCHW: Tensor) -> Tensor:
        """Return the norm over channels, [N, 1, H, W]; squaring and summing costs a third of the speed."""
        norm: Tensor = torch.linalg.vector_norm(self.exact(tensor_NCHW), dim=1, keepdim=True)
        return norm

    def _mean(self, tensor_NCHW: Tensor) -> Tensor:
        """Return the mean of every channel, [N, C, 1, 1]."""
        mean: Tensor = self.exact(tensor_NCHW).mean((2, 3), keepdim=True)
        return mean

    def _active(self, tensor_NCHW: Tensor) -> Tensor:
        return active(self.exact(tensor_NCHW))


def active(tensor_NCHW: Tensor) -> Tensor:
    """Return 1 for positive values and 0 for others, float32: two operators; a comparison would take four."""
    return (tensor_NCHW.float() * HUGE).clamp(0, 1)


def channel_moments(residual_NC11: Tensor, shortcut_NC11: Tensor | None) -> Tensor:
    """Return moments of the channels' means, [N, 1, 4, 1]: mean F, mean F^2, mean s^2, mean F s."""
    if shortcut_NC11 is None:
        shortcut_NC11 = 0 * residual_NC11
    moments = (
        residual_NC11,
        residual_NC11 * residual_NC11,
        shortcut_NC11 * shortcut_NC11,
        residual_NC11 * shortcut_NC11,
    )
    return torch.cat(moments, 2).mean(1, keepdim=True)


def active_fractions(active_NCHW: Tensor, shortcut_NCHW: Tensor | None) -> list[Tensor]:
    """Return the fractions of [u > 0], [s > 0] and both, [N, 1, 1, 1] each; ReLU(u) > 0 where u > 0."""
    fraction_N111 = active_NCHW.mean((1, 2, 3), keepdim=True)
    if shortcut_NCHW is None:
        return [fraction_N111, 0 * fraction_N111, 0 * fraction_N111]
    masks = (shortcut_NCHW, active_NCHW * shortcut_NCHW)
    return [fraction_N111, *(mask.mean((1, 2, 3), keepdim=True) for mask in masks)]
