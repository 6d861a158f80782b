from __future__ import annotations

import argparse
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.weights import WeightsError, load_foreign, read_state
from models.zoo import architecture
from tests.support.foreign import ForeignBlock, ForeignResNet
from tests.support.networks import liven

CASES: dict[str, tuple[dict[str, Any], str, int]] = {
    "CIFAR, option A": (dict(depths=(3, 3, 3), width=16, option="A", head="linear"), "resnet20", 32),
    "CIFAR, 110 layers": (dict(depths=(18, 18, 18), width=16, option="A", head="linear"), "resnet110", 32),
    "CIFAR, option B": (dict(depths=(3, 3, 3), width=16, side="shortcut", num_classes=100), "resnet20", 32),
    "ImageNet, basic": (dict(depths=(2, 2, 2, 2), imagenet=True, num_classes=1000), "resnet18", 64),
    "ImageNet, bottleneck": (
        dict(depths=(3, 4, 6, 3), imagenet=True, bottleneck=True, num_classes=1000),
        "resnet50",
        64,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_foreign_network(case: str) -> None:
    arguments, name, size = CASES[case]
    foreign = liven(ForeignResNet(**arguments), seed=5)
    ours = load_foreign(foreign.state_dict())
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, got = foreign(x), ours(x)
    assert ours.spec.name == name
    assert torch.allclose(got, expected, rtol=0, atol=1e-4 * float(expected.max() - expected.min()))
    assert expected.std() > 0.01


def _foreign20() -> nn.Module:
    return liven(ForeignResNet((3, 3, 3), width=16, option="A", head="linear"))


@pytest.mark.parametrize("suffix", [".pth", ".th", ".bin", ".safetensors"])
def test_files_and_wrappers(tmp_path: Path, suffix: str) -> None:
    state = {f"module.{name}": tensor for name, tensor in _foreign20().state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "best_prec1": 91.7, "epoch": 200}, path)
    assert load_foreign(path).spec.name == "resnet20"


def test_files_without_counters_load() -> None:
    state = {k: v for k, v in _foreign20().state_dict().items() if not k.endswith("num_batches_tracked")}
    assert load_foreign(state).spec.num_classes == 10


@pytest.mark.parametrize(
    "keys", [("model",), ("model", "state_dict"), ("checkpoint", "net"), ("state_dict_ema",)]
)
def test_nested_state_dicts(tmp_path: Path, keys: tuple[str, ...]) -> None:
    kept: dict[str, Any] = dict(_foreign20().state_dict())
    for key in reversed(keys):
        kept = {"optimizer": {"state": {0: torch.ones(1)}}, key: kept, "epoch": 3}
    torch.save(kept, tmp_path / "kept.pt")
    assert load_foreign(tmp_path / "kept.pt").spec.name == "resnet20"


def test_half_precision_becomes_single() -> None:
    state = {name: tensor.half() for name, tensor in _foreign20().state_dict().items()}
    assert {tensor.dtype for tensor in load_foreign(state).parameters()} == {torch.float32}


def test_a_given_architecture_that_does_not_fit() -> None:
    with pytest.raises(
        WeightsError, match=r"do not fit resnet32: .* missing .*nearest architecture: resnet20"
    ):
        load_foreign(_foreign20().state_dict(), architecture("resnet32"))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="cannot read weights"):
        load_foreign(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer2.1.conv1.weight"), r"resnet20: 1 missing \(layer2\.1\.conv1\.weight\)"),
        (
            lambda s: s.pop("layer2.1.conv1.weight"),
            r"nearest architecture: resnet20 \(94 of its 95 tensors\)",
        ),
        (lambda s: s.update({"layer1.0.conv9.weight": torch.zeros(1)}), r"1 unexpected \(layer1\.0\.conv9"),
        (
            lambda s: s.update({"layer2.0.bn1.bias": torch.zeros(7)}),
            r"1 of another shape .*\[7\] instead of \[32\]",
        ),
        (lambda s: s.update({"decoder.weight": torch.zeros(1)}), r"1 unexpected \(decoder\.weight\)"),
        (
            lambda s: s.update({"linear.weight": torch.zeros(64)}),
            r"not a ResNet: head.weight has the shape \[64\]",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if "layer" in name],
            "no tensor became stage1.0.branch.conv1",
        ),
        (lambda s: [s.pop(k) for k in list(s)] and s.update(x=torch.ones(1)), "unknown tensor names: x"),
        (lambda s: s.clear(), "not a ResNet"),
        (
            lambda s: s.update({"layer9.0.conv1.weight": torch.zeros(1, 1, 3, 3)}),
            "not a ResNet: its stages are 1, 2, 3, 9",
        ),
        (lambda s: s.update({f"layer{'9' * 5000}.0.conv1.weight": torch.zeros(1)}), "1 unexpected"),
    ],
)
def test_a_mismatch_is_named(change: Any, message: str) -> None:
    state = dict(_foreign20().state_dict())
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_foreign(state)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.pth", b"hello world", r"not a PyTorch file, or one that .* to be read$"),
        ("short.pth", b"\x80\x02.", r"not a PyTorch file, or one that .* to be read$"),
        ("empty.pth", b"", r"not a PyTorch file"),
        ("noise.pth", b"noise" * 100, r"to be read \(Unsupported operand 110\)$"),
        ("new.pth", pickle.dumps({"epoch": 1}, protocol=5), r"to be read \(Unsupported operand \d+\)$"),
        (
            "path.pth",
            pickle.dumps(Path("x"), protocol=2),
            r"\(Unsupported global: GLOBAL pathlib.* default\)$",
        ),
        ("noise.safetensors", b"noise" * 100, "not a safetensors file"),
        ("absent.pth", None, "No such file"),
        ("absent.safetensors", None, "No such file"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"cannot read weights from .*{name}: .*{message}"):
        load_foreign(tmp_path / name)


def test_damaged_files(tmp_path: Path) -> None:
    """One bit of an old-style file: it loads, or the error is ours."""
    path = tmp_path / "damaged.pth"
    torch.save({"fc.weight": torch.ones(3, 2)}, path, _use_new_zipfile_serialization=False)
    whole, failed = path.read_bytes(), 0
    for position in range(0, len(whole), 2):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position // 2 % 8
        path.write_bytes(damaged)
        try:
            read_state(path)
        except WeightsError:
            failed += 1
    assert failed > 50


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    kept: dict[str, Any] = {}
    kept["model"] = kept
    torch.save(kept, tmp_path / "kept.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        read_state(tmp_path / "kept.pth")


def _as_weiaicunzai(match: re.Match[str]) -> str:
    stage, block, kind, number = match.groups()
    position = {"conv": 0, "bn": 1}[kind] + 3 * (int(number) - 1)
    return f"conv{int(stage) + 1}_x.{block}.residual_function.{position}."


def _unit(match: re.Match[str], rest: str) -> str:
    stage, block, *number = match.groups()
    return f"features.stage{stage}.unit{int(block) + 1}.{rest.format(*number)}"


# The same tensors under other projects' names: (pattern, replacement) over those of ForeignResNet.
STYLES: dict[str, list[tuple[str, Any]]] = {
    "weiaicunzai": [
        (r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.", _as_weiaicunzai),
        (r"^layer(\d)\.(\d+)\.downsample\.", lambda m: f"conv{int(m[1]) + 1}_x.{m[2]}.shortcut."),
        (r"^conv1\.weight", "conv1.0.weight"),
        (r"^bn1\.", "conv1.1."),
    ],
    "pytorchcv": [
        (
            r"^layer(\d)\.(\d+)\.conv(\d)\.",
            lambda m: _unit(m, "body.conv{}.conv."),
        ),
        (
            r"^layer(\d)\.(\d+)\.bn(\d)\.",
            lambda m: _unit(m, "body.conv{}.bn."),
        ),
        (
            r"^layer(\d)\.(\d+)\.downsample\.0\.",
            lambda m: _unit(m, "identity_conv.conv."),
        ),
        (
            r"^layer(\d)\.(\d+)\.downsample\.1\.",
            lambda m: _unit(m, "identity_conv.bn."),
        ),
        (r"^conv1\.", "features.init_block.conv."),
        (r"^bn1\.", "features.init_block.bn."),
        (r"^fc\.", "output."),
    ],
    "transformers": [
        (
            r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.",
            lambda m: (
                f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}."
                + {"conv": "convolution.", "bn": "normalization."}[m[3]]
            ),
        ),
        (
            r"^layer(\d)\.(\d+)\.downsample\.(\d)\.",
            lambda m: (
                f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut."
                + ("convolution.", "normalization.")[int(m[3])]
            ),
        ),
        (r"^conv1\.", "resnet.embedder.embedder.convolution."),
        (r"^bn1\.", "resnet.embedder.embedder.normalization."),
        (r"^fc\.", "classifier.1."),
    ],
    "compiled and distributed": [(r"^", "_orig_mod.module.model.")],
}


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_other_projects_names(style: str, bottleneck: bool) -> None:
    foreign = liven(ForeignResNet((2, 1, 1, 1), width=8, bottleneck=bottleneck), seed=3)
    state = {}
    for name, tensor in foreign.state_dict().items():
        for pattern, replacement in STYLES[style]:
            renamed, count = re.subn(pattern, replacement, name)
            if count:
                name = renamed
                break
        state[name] = tensor
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(load_foreign(state)(x), foreign(x), atol=1e-5)


def test_zeros_after_the_old_channels() -> None:
    """The same names and shapes as with zeros on both sides: only the caller can tell."""
    foreign = _foreign20()
    for module in foreign.modules():
        if isinstance(module, ForeignBlock):
            module.pad_after = True
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = load_foreign(foreign.state_dict(), architecture("resnet20", shortcut="pad-after"))
        assert torch.allclose(ours(x), foreign(x), atol=1e-4)
        assert not torch.allclose(load_foreign(foreign.state_dict())(x), foreign(x), atol=1e-2)


def test_a_row_of_the_zoo_takes_the_files_classes() -> None:
    foreign = ForeignResNet((3, 3, 3), width=16, option="A", head="linear", num_classes=7)
    model = load_foreign(foreign.state_dict(), architecture("resnet20", num_classes=10))
    assert model.spec == architecture("resnet20", num_classes=7)
    assert model.head.out_features == 7


def test_a_3x3_stem_with_a_pool() -> None:
    """The same names and shapes as without."""
    foreign = liven(ForeignResNet((2, 2, 2, 2), width=8), seed=4)
    state = foreign.state_dict()
    foreign.bn1 = nn.Sequential(foreign.bn1, nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = load_foreign(state, replace(load_foreign(state).spec, stem="3x3/pool"))
        assert torch.allclose(ours(x), foreign(x), atol=1e-5)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "value", [np.float64(91.7), np.float32(91.7), np.int64(3), np.int32(3), np.bool_(True)]
)
def test_values_beside_the_weights(tmp_path: Path, value: np.generic, zipped: bool) -> None:
    kept = {"model_state": _foreign20().state_dict(), "best": value, "args": argparse.Namespace(lr=0.1)}
    torch.save(kept, tmp_path / "kept.pth", _use_new_zipfile_serialization=zipped)
    assert load_foreign(tmp_path / "kept.pth").spec.name == "resnet20"


def test_values_of_numpy_1(tmp_path: Path) -> None:
    """Its scalars' constructor has another name."""
    path = tmp_path / "kept.pth"
    kept = {"model_state": _foreign20().state_dict(), "best": np.float32(91.7)}
    torch.save(kept, path, _use_new_zipfile_serialization=False)
    new, old = b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n"
    assert new in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(new, old))
    assert load_foreign(path).spec.name == "resnet20"
