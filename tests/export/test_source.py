"""Sources of weights are recognised by their content, and options that do not fit a source are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from export.precisions import PrecisionRequest
from export.source import Request, SourceError, Training, check_options, directory_of, kind_of, options_of
from models.checkpoint import save_checkpoint
from models.resnet import build
from models.weights import is_safetensors
from tests.support.networks import metadata_for


def test_content_tells_the_kind(tmp_path: Path) -> None:
    model = build("resnet20", depths=(1, 1), width=4)
    save_checkpoint(tmp_path / "a.safetensors", model, metadata_for(model))
    (tmp_path / "a.safetensors").rename(tmp_path / "ours.pth")
    torch.save(model.state_dict(), tmp_path / "pickled.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "tensors.th")
    (tmp_path / "short").write_bytes(b"{")
    kinds = {path.name: kind_of(Request(str(path), tmp_path)) for path in tmp_path.iterdir()}
    assert kinds == {
        "ours.pth": "checkpoint",
        "pickled.safetensors": "weights",
        "tensors.th": "weights",
        "short": "weights",
    }
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_safetensors(path)] == [
        "ours.pth",
        "tensors.th",
    ]
    assert kind_of(Request("resnet50:v1", tmp_path)) == "published"
    assert kind_of(Request("resnet50", tmp_path, seed=0)) == "random"
    for missing, message in ((tmp_path, "is a folder"), (tmp_path / "absent.pth", "no such file")):
        with pytest.raises(SourceError, match=message):
            kind_of(Request(str(missing), tmp_path))


def test_the_directory_is_what_is_given_or_the_usual_name(tmp_path: Path) -> None:
    path = str(tmp_path / "run7" / "checkpoint.safetensors")
    assert directory_of(Request(path, Path("a")), "checkpoint", None) == Path("a/run7")
    assert directory_of(Request(path, Path("a")), "weights", None) == Path("a/checkpoint")
    assert directory_of(Request(path, Path("a"), name="mine"), "weights", None) == Path("a/mine")
    assert directory_of(Request(path, Path("a"), Path("b"), "mine"), "weights", None) == Path("b")
    assert directory_of(Request("ResNet-50", Path("a"), seed=1), "random", None) == Path("a/resnet50")


def test_what_is_trained_is_another_option(tmp_path: Path) -> None:
    """Else a pruned artifact would count as the one that was asked for."""
    assert options_of(Request("resnet50", tmp_path)) == {}
    assert options_of(Request("resnet50", tmp_path, scaled_decoding=True)) == {"scaled_decoding": True}
    pruned = Request("resnet50", tmp_path, training=Training(prune=0.3))
    assert options_of(pruned) == {"prune": 0.3, "prune_epochs": 1}
    with pytest.raises(SourceError, match="--data: give it"):
        check_options(pruned, "weights", None)
    trained = Request(
        "x.pth", tmp_path, precisions=PrecisionRequest(("fp16",)), training=Training(qat_epochs=1)
    )
    with pytest.raises(SourceError, match="ask for that too"):
        check_options(trained, "weights", None)
