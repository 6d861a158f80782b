"""Fixtures: the embedded artifact, and a small random one made by the real export pipeline."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from artifact.manifest import Label, Preprocessing
from export.pipeline import export_artifact
from models.checkpoint import CheckpointMetadata, describe_architecture
from models.resnet import ResNet, build

# What torch tells of each of an export's steps, formatted for pytest to keep, takes a tenth of its time.
logging.getLogger("torch.__trace").disabled = True

# Nor does what ONNX Script knows of torch's operators change between two exports; to read it takes a second.
ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))  # type: ignore[assignment, method-assign]

# Networks as small as these run faster on one thread than on many.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.fixture(scope="session", autouse=True)
def _engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a choice of engines leaves behind lies in a folder of this run's, and beside no artifact."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RESIDUUM_ENGINE_CACHE", str(tmp_path_factory.mktemp("engines")))
        yield


@pytest.fixture(scope="session")
def embedded() -> Path:
    """The default model's artifact."""
    return ROOT / "models" / "embedded"


@pytest.fixture(scope="session")
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 with random weights and ten classes for 32x32 images, as an artifact; made once a run."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent  # of all workers
    out = folder / "artifacts" / "resnet20"
    with FileLock(folder / "artifacts.lock"):
        if not out.exists():
            model = liven(build("resnet20", seed=1))
            about = {"source": "random weights", "weights_sha256": "0" * 64}
            export_artifact(model, metadata_for(model), "resnet20", out, **about)
    return out
