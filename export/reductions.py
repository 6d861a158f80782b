"""What the introspect graph reads off big tensors, each in as few passes as engines can do it.

Shapes: N batch, C channels, H W space.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

HUGE = 1e30  # times this, whatever counts as positive is past 1


class Reductions:
    """What is read off a tensor [N, C, H, W], in float32 and once a tensor."""

    def __init__(self) -> None:
        # What is squared must be float32 *before*: 2048 channels of 6 pass fp16's 65,504.
        self.exact = cache(lambda tensor_NCHW: tensor_NCHW.float())
        self.norm = cache(self._norm)
        self.mean = cache(self._mean)
        self.active = cache(self._active)

    def _norm(self, tensor_NCHW: Tensor) -> Tensor:
        """Over channels, [N, 1, H, W]: squares written out and then summed cost a third of the throughput."""
        norm: Tensor = torch.linalg.vector_norm(self.exact(tensor_NCHW), dim=1, keepdim=True)
        return norm

    def _mean(self, tensor_NCHW: Tensor) -> Tensor:
        """Of every channel, [N, C, 1, 1]."""
        mean: Tensor = self.exact(tensor_NCHW).mean((2, 3), keepdim=True)
        return mean

    def _active(self, tensor_NCHW: Tensor) -> Tensor:
        return active(self.exact(tensor_NCHW))


def active(tensor_NCHW: Tensor) -> Tensor:
    """1 where it is positive, else 0, float32: engines make two steps of this, and four of a comparison."""
    return (tensor_NCHW.float() * HUGE).clamp(0, 1)


def channel_moments(residual_NC11: Tensor, shortcut_NC11: Tensor | None) -> Tensor:
    """Of the channels' means, [N, 1, 4, 1]: mean F, mean F^2, mean s^2, mean F s."""
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
    """[u > 0], [s > 0] and both, [N, 1, 1, 1] each. Here as elsewhere ReLU(u) > 0 where u > 0."""
    fraction_N111 = active_NCHW.mean((1, 2, 3), keepdim=True)
    if shortcut_NCHW is None:
        return [fraction_N111, 0 * fraction_N111, 0 * fraction_N111]
    masks = (shortcut_NCHW, active_NCHW * shortcut_NCHW)
    return [fraction_N111, *(mask.mean((1, 2, 3), keepdim=True) for mask in masks)]
