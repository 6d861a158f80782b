"""The command line as a person uses it: a process, its output, its exit code."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.verify import synthetic_images
from models.checkpoint import save_checkpoint
from models.resnet import build
from tests.conftest import ROOT, liven, metadata_for


def residuum(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "residuum.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "field.jpg"
    Image.fromarray(synthetic_images(1, 200, seed=0)[0]).crop((0, 0, 200, 150)).save(path)
    return path


def test_help_names_every_command() -> None:
    done = residuum("--help")
    assert done.returncode == 0
    for name in ("serve", "classify", "introspect", "models", "train", "export", "bench"):
        assert name in done.stdout
        assert residuum(name, "--help").returncode == 0


def test_serving_loads_no_torch() -> None:
    code = "import sys, residuum; residuum.make_parser(); import service.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_classify_prints_a_table_or_json(artifact: Path, photograph: Path) -> None:
    table = residuum("classify", photograph, photograph, "--model", artifact)
    assert table.returncode == 0, table.stderr
    assert table.stdout.count("field.jpg (jpeg, 200 x 150)") == 2
    document = json.loads(
        residuum("classify", photograph, "--model", artifact, "--top-k", "3", "--json").stdout
    )
    assert (document["model"], document["engine"], document["precision"]) == (
        "resnet20",
        "onnxruntime",
        "fp32",
    )
    (result,) = document["results"]
    assert result["image"] == {"format": "jpeg", "width": 200, "height": 150}
    assert len(result["predictions"]) == 3
    assert result["predictions"][0]["label"] in table.stdout


def test_a_bad_image_does_not_lose_the_good_one(artifact: Path, photograph: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.jpg").write_bytes(b"noise")
    done = residuum(
        "classify", tmp_path / "noise.jpg", tmp_path / "absent.jpg", photograph, "--model", artifact
    )
    assert done.returncode == 2
    assert "field.jpg" in done.stdout
    first, second = done.stderr.splitlines()
    assert first.startswith("residuum: ")
    assert "noise.jpg" in first
    assert "absent.jpg: No such file" in second


def test_introspect_writes_what_the_suffix_says(artifact: Path, photograph: Path, tmp_path: Path) -> None:
    for suffix in ("png", "npz", "json"):
        done = residuum("introspect", photograph, "--model", artifact, "-o", tmp_path / f"out.{suffix}")
        assert done.returncode == 0, done.stderr
        assert "stage3.2" in done.stdout
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.width > 500
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["maps/stage1.0/share"].shape == (32, 32)
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["blocks"]) == 9
    gated = residuum(
        "introspect", photograph, "--model", artifact, "--gates", "stage2.1:0", "--json", "--maps", "none"
    )
    block = json.loads(gated.stdout)["blocks"][4]
    assert block["name"] == "stage2.1"
    assert block["rms"]["residual"] == 0


def test_models_lists_the_embedded_one_and_the_folder(artifact: Path) -> None:
    done = residuum("models", "--artifacts", artifact.parent, "--json")
    rows = json.loads(done.stdout)
    assert [row["model"] for row in rows] == ["embedded", "resnet20"]
    assert rows[1]["num_parameters"] == 269_722
    assert "resnet20" in residuum("models", "--artifacts", artifact.parent).stdout


def test_a_checkpoint_becomes_an_artifact_that_classifies(photograph: Path, tmp_path: Path) -> None:
    model = liven(build("resnet20", width=4))
    save_checkpoint(tmp_path / "checkpoint.safetensors", model, metadata_for(model))
    done = residuum("export", tmp_path / "checkpoint.safetensors", "-o", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    assert "introspect" in done.stdout
    assert residuum("classify", photograph, "--artifacts", tmp_path, "--model", "small").returncode == 0


def test_bench_ends_with_json(artifact: Path) -> None:
    done = residuum("bench", "--model", artifact, "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert 40e6 < document["macs"] < 42e6  # He et al. 2016: ResNet-20 has 41 M
    assert {row["graph"] for row in document["rows"]} == {"classify", "introspect"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "x.jpg", "--model", "nothing"), "there is no artifact of that name"),
        (("classify", "x.jpg", "--top-k", "0"), "--top-k 0"),
        (("classify", "x.jpg", "--device", "tpu"), "--device tpu"),
        (("introspect", "x.jpg"), "x.jpg: No such file"),
        (("introspect", "x.jpg", "-o", "x.bmp"), "must be .png, .npz or .json"),
        (("introspect", "x.jpg", "--gates", "stage9.0:1"), "stage9.0"),
        (("introspect", "x.jpg", "--alpha", "7"), "--alpha 7"),
        (("serve", "--port", "many"), "--port many"),
        (("serve", "--engine", "tensorflow"), "--engine tensorflow"),
        (("train", "nothing", "--data", "x"), "unknown recipe"),
        (("train", "cifar10-resnet20"), "--data is needed"),
        (("train", "cifar10-resnet20", "--data", "x", "--set", "epochs"), "expected FIELD=VALUE"),
        (("export", "absent.safetensors", "-o", "x"), "cannot read absent.safetensors"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = residuum(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_arguments_is_a_usage_error() -> None:
    assert residuum().returncode == 2


def test_json_goes_through_a_pipe_whole(artifact: Path, photograph: Path) -> None:
    """UTF-8, and nothing else on standard output."""
    done = residuum("introspect", photograph, "--model", artifact, "--json")
    assert json.load(io.StringIO(done.stdout))["model"]["name"] == "resnet20"
