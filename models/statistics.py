"""Estimation of BatchNorm statistics on given images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace running means and variances by their mean over `batches`, which should have the same size.

    Afterwards the network is in evaluation mode. Dropout is off, as in serving, unlike in
    torch's `update_bn`.
    """
    momenta = {norm: norm.momentum for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)}
    network.eval()
    for norm in momenta:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for batch in batches:
        network(batch)
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    network.eval()
