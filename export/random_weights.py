"""A row of the zoo with random weights, for benchmarks and tests: a real network that has learnt nothing.

A newly initialised network would not test an export: its BatchNorms do nothing, so an error in fusing them
would not show. Here scales and shifts are random, and the statistics are those of synthetic images, so that
activations neither vanish nor overflow in fp16, however deep the network is.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from export.options import usual_labels, usual_preprocessing
from export.verify import synthetic_images
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.pixels import normalised
from models.resnet import ResNet, build
from models.statistics import estimate_statistics

NUM_IMAGES = 8
# Scale of a branch's last norm. If branches were as strong as their shortcuts, rounding errors would grow by
# a quarter with each block, in bf16 to a third of the sums after 16 blocks, and parity could not be checked.
BRANCH_SCALE = 0.3
RANDOM = "random"  # as `Provenance.weights` names such weights


def random_model(name: str, seed: int = 0) -> tuple[ResNet, CheckpointMetadata]:
    """Return the network in evaluation mode, and its metadata; the same for the same seed.

    Raises:
        UnknownArchitecture: the zoo has no row of that name.
    """
    model = build(name, seed=seed).eval()
    metadata = CheckpointMetadata(
        architecture=describe_architecture(model),
        labels=usual_labels(model.spec)[0],
        preprocessing=usual_preprocessing(model.spec),
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in _norms(model):
            norm.weight.uniform_(0.4, 1.2, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
        for _, block in model.named_blocks():
            for norm in _norms(block.branch)[-1:]:
                norm.weight.mul_(BRANCH_SCALE)
                norm.bias.mul_(BRANCH_SCALE)
    images = synthetic_images(NUM_IMAGES, metadata.preprocessing.crop, seed)
    estimate_statistics(model, [normalised(images, metadata.preprocessing, torch.float64).float()])
    return model, metadata


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def sha256_of_weights(model: ResNet) -> str:
    """Return the SHA-256 of all tensors in order, because random weights are in no file."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
