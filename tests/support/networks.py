"""Networks with random weights, and what an export has to know of them."""

from __future__ import annotations

import torch
from torch import nn

from artifact.manifest import Label, Preprocessing
from export.network import Network, Origin
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.resnet import ResNet

# Networks as small as those of the tests run faster on one thread than on many.
torch.set_num_threads(1)


def liven(model: ResNet, seed: int = 0) -> ResNet:
    """Random BatchNorm statistics and parameters, so that fusing them wrongly shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.4, 1.2, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return model.eval()


def metadata_for(model: ResNet, size: int = 32) -> CheckpointMetadata:
    return CheckpointMetadata(
        architecture=describe_architecture(model),
        labels=tuple(Label(label=f"class {index}") for index in range(model.spec.num_classes)),
        preprocessing=Preprocessing(
            resize=size, crop=size, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
    )


def network_of(model: ResNet, size: int = 32) -> Network:
    """Return a model as `export_artifact` takes it."""
    return Network(model, metadata_for(model, size), Origin("random weights", "0" * 64))
