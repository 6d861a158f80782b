"""A row of the zoo with random weights, for benchmarks and tests: a real network that has learnt nothing.

A fresh network would be too tame to test an export with: its BatchNorms do nothing, so fusing them wrongly
would not show. Scales and shifts are random here, and the statistics are those of made-up images, so that
activations neither fade nor overflow in fp16, however deep the network.
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
# Of a branch's last norm. With branches as strong as their shortcuts, rounding errors would grow by a quarter
# a block, in bf16 to a third of the sums after 16 blocks: such a network could be held against nothing.
BRANCH_SCALE = 0.3
RANDOM = "random"  # as `Provenance.weights` names such weights


def random_model(name: str, seed: int = 0) -> tuple[ResNet, CheckpointMetadata]:
    """The network in evaluation mode, and its metadata; the same for the same seed.

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
    """Of the tensors in order: random weights lie in no file whose hash could be taken."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
