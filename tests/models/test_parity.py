"""Our networks against the implementations that people trust: the same logits, in both directions.

Every row of the zoo that torchvision, timm, transformers or pytorchcv has, with random weights and random
BatchNorm statistics. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.key_map import recognise, to_foreign
from models.weights import load_foreign
from models.zoo import ZOO, architecture
from tests.support import oracles

SEEDS = (0,)  # any other will do: `assert_parity` takes it
TOLERANCE = 1e-4  # of the logits' range

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)
TIMM = (
    *("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnet18d", "resnet26d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
    *("resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152"),
    *("seresnext50_32x4d", "seresnext101_32x4d"),
    *("resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101", "resnetv2_152"),
)
TRANSFORMERS = ("resnet18", "resnet26", "resnet34", "resnet50", "resnet101", "resnet152")
# Its option for every shortcut is B.
PYTORCHCV = {
    "resnet20_cifar10": "resnet20",
    "resnet56_cifar10": "resnet56",
    "resnet110_cifar10": "resnet110",
    "preresnet20_cifar10": "resnetv2_20",
    "preresnet110_cifar10": "resnetv2_110",
    "preresnet164bn_cifar10": "resnetv2_164",
    "seresnet110_cifar10": "seresnet110",
    "seresnet164bn_cifar10": "seresnet164",
    "wrn16_10_cifar10": "wrn16_10",
    "wrn28_10_cifar10": "wrn28_10",
    "resnext29_32x4d_cifar10": "resnext29",
    "densenet100_k12_bc_cifar10": "densenet_bc100_k12",
}
# Not in the zoo, but what it is made of is.
MORE_OF_TIMM = {"resnet50c": "resnet50c", "seresnext26d_32x4d": "seresnext26d"}


class Logits(nn.Module):
    """A network of transformers, which answers with more than its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.network(x_NCHW).logits

    def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Tensor], strict: bool = True) -> object:  # type: ignore[override]
        return self.network.load_state_dict(state, strict)


def from_torchvision(name: str) -> nn.Module:
    return oracles.torchvision().models.get_model(name)


def from_timm(name: str) -> nn.Module:
    return oracles.timm().create_model(name)


def from_transformers(name: str) -> nn.Module:
    """As the configurations of microsoft/resnet-18 ... -152 say it."""
    library, row = oracles.transformers(), architecture(name)
    expansion = 4 if row.branch == "bottleneck" else 1
    config = library.ResNetConfig(
        depths=list(row.depths),
        layer_type=row.branch,
        hidden_sizes=[64 * expansion * 2**stage for stage in range(4)],
        num_labels=1000,
    )
    return Logits(library.ResNetForImageClassification(config))


def from_pytorchcv(name: str) -> nn.Module:
    return oracles.pytorchcv().model_provider.get_model(name)


LIBRARIES: dict[str, tuple[Callable[[str], nn.Module], dict[str, str]]] = {
    "torchvision": (from_torchvision, {name: name for name in TORCHVISION}),
    "timm": (from_timm, {name: name for name in TIMM} | MORE_OF_TIMM),
    "transformers": (from_transformers, {name: name for name in TRANSFORMERS}),
    "pytorchcv": (from_pytorchcv, PYTORCHCV),
}
CASES = [(library, name) for library, (_, names) in LIBRARIES.items() for name in names]


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Every tensor random; BatchNorm neither nearly the identity nor nearly zero."""
    model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if name == "num_batches_tracked":
                tensor.fill_(seed)
            elif name == "running_var":
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif name == "weight" and tensor.ndim == 1:
                tensor.uniform_(0.4, 1.2, generator=generator)
            elif tensor.ndim == 1:
                tensor.uniform_(-0.5, 0.5, generator=generator)
            else:
                bound = (6 / tensor[0].numel()) ** 0.5
                tensor.uniform_(-bound, bound, generator=generator)
    return model


def images(size: int, seed: int) -> Tensor:
    """Two that differ in contrast and colour. The last stages of 72 pixels have odd sizes: 9, 5 and 3."""
    x_NCHW = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return x_NCHW * torch.tensor([0.3, 2.0]).reshape(2, 1, 1, 1) + torch.tensor([1.0, -1.0]).reshape(
        2, 1, 1, 1
    )


def assert_parity(library: str, name: str, seed: int) -> None:
    """Theirs to ours by `load_foreign`, and ours to theirs by `to_foreign`, strictly."""
    make, names = LIBRARIES[library]
    with torch.device("meta"):
        theirs = make(name)
    randomise(theirs, seed)
    ours = load_foreign(theirs.state_dict())
    assert ours.spec.name == names[name]
    x_NCHW = images(32 if ours.spec.input_size == 32 else 72, seed)
    with torch.inference_mode():
        expected, got = theirs(x_NCHW), ours(x_NCHW)
    span = float(expected.max() - expected.min())
    assert expected.isfinite().all()
    assert float((got - expected).abs().max()) <= TOLERANCE * span
    # Not one answer for every image, which would hide much.
    assert float((expected[0] - expected[1]).abs().max()) > 50 * TOLERANCE * span

    foreign = to_foreign(ours, library)
    assert recognise(foreign) == recognise(theirs.state_dict())
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            tensor.zero_()
    theirs.load_state_dict(foreign, strict=True)
    with torch.inference_mode():
        assert float((theirs(x_NCHW) - got).abs().max()) <= TOLERANCE * span


@pytest.mark.slow  # most of the networks are large
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("library", "name"), CASES)
def test_logits_are_those_of(library: str, name: str, seed: int) -> None:
    assert_parity(library, name, seed)


def test_no_row_that_they_have_is_left_out() -> None:
    rows = set(ZOO)
    assert rows & set(oracles.torchvision().models.list_models()) <= set(TORCHVISION)
    # CIFAR's rows have names that timm has not.
    assert rows & set(oracles.timm().list_models()) <= set(TIMM)
