"""Training on a small data set made on the spot: files in, checkpoint out, through kills and bad losses."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from artifact.manifest import Preprocessing
from models.checkpoint import CheckpointError, load_checkpoint
from models.resnet import build
from models.training.data import DataError, load_images
from models.training.loop import as_served, batch_indices, recalibrate, train
from models.training.recipe import RECIPES, Recipe, RecipeError, get_recipe
from models.training.run import CHECKPOINT_FILE, make_optimizer
from models.training.state import STATE_FILE, TrainingError
from tests.conftest import ROOT

COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))
TINY = replace(
    RECIPES["cifar10-resnet20"],
    name="tiny",
    num_classes=3,
    epochs=3,
    batch_size=16,
    width=4,
    warmup_epochs=0,
    learning_rate=0.05,
    schedule="cosine",
    resolutions=((0.5, 16), (1.0, 32)),
    crop_scale=(0.4, 1.0),
    label_smoothing=0.1,
    jitter=0.2,
    erasing=0.3,
    mixup=0.2,
    cutmix=1.0,
    clip_norm=5.0,
    ema_decay=0.8,
    recalibrate=True,
)


def picture(color: tuple[int, int, int], rng: np.random.Generator, size: int = 32) -> bytes:
    pixels = np.clip(rng.normal(color, 30, (size, size, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three colours as Parquet shards, in the form of the hub's image data sets."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["red", "green", "blue"])
    )
    for split, count in (("train-00000-of-00001", 80), ("valid-00000-of-00001", 30)):
        labels = [i % 3 for i in range(count)]
        images = [{"bytes": picture(COLORS[label], rng), "path": None} for label in labels]
        table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        table.to_parquet(str(folder / f"{split}.parquet"))
    (folder / "classes.json").write_text(json.dumps([{"index": 1, "wnid": "n00000001", "name": "green"}]))
    return folder


def run(recipe: Recipe, data: Path, out: Path, **options: object) -> Path:
    spec = recipe.preprocessing()
    sets = (load_images(str(data), split, spec) for split in ("train", "valid"))
    return train(recipe, *sets, out, accelerator="cpu", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(TINY, data, tmp_path_factory.mktemp("uninterrupted"))


def test_it_learns_and_the_checkpoint_says_what_it_is(uninterrupted: Path) -> None:
    model, metadata = load_checkpoint(uninterrupted)
    assert metadata.accuracy is not None
    assert metadata.accuracy.top1 > 0.8
    assert metadata.accuracy.num_images == 30
    assert [label.wnid for label in metadata.labels] == [None, "n00000001", None]
    assert metadata.recipe is not None
    assert metadata.recipe["epochs"] == 3
    assert model.spec.width == 4
    assert not model.training


def test_logs_and_curves_are_written(uninterrupted: Path) -> None:
    lines = (uninterrupted.parent / "metrics.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,learning_rate,train_loss,valid_loss,valid_top1")
    assert len(lines) == 4
    with Image.open(uninterrupted.parent / "curves.png") as curves:
        assert curves.size == (1200, 480)
    assert list((uninterrupted.parent / "tensorboard").glob("events.*"))


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.models.training.test_training import TINY, run
def kill(step):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
run(TINY, Path(sys.argv[1]), Path(sys.argv[2]), save_every=3, on_step=kill)
"""


def test_a_killed_run_resumes_to_the_same_result(uninterrupted: Path, data: Path, tmp_path: Path) -> None:
    """Killed at step 8 of 15, in the second epoch; the last saved state is that of step 6."""
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, data, tmp_path], cwd=ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert torch.load(tmp_path / STATE_FILE, weights_only=True)["step"] == 6
    resumed, metadata = load_checkpoint(run(TINY, data, tmp_path))
    expected, expected_metadata = load_checkpoint(uninterrupted)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert metadata.history == expected_metadata.history


# What `last.ckpt` held before the state was a dataclass; runs that began then are resumed.
OLD_LAYOUT = (
    *("model", "optimizer", "ema", "step", "losses"),
    *("train_loss", "history", "recipe", "commit", "data"),
)


def test_a_state_in_the_layout_of_older_versions_is_resumed(
    uninterrupted: Path, data: Path, tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(step: int) -> None:
        if step == 8:
            raise Stopped

    with pytest.raises(Stopped):
        run(TINY, data, tmp_path / "begun", save_every=3, on_step=stop)
    saved = torch.load(tmp_path / "begun" / STATE_FILE, weights_only=True)
    assert set(saved) == set(OLD_LAYOUT)
    recipe = {name: value for name, value in saved["recipe"].items() if name != "checkpoint_blocks"}
    old = {name: recipe if name == "recipe" else saved[name] for name in OLD_LAYOUT}
    assert (old["step"], len(old["losses"]), old["data"]) == (6, 1, [80, 30, 1])
    (tmp_path / "resumed").mkdir()
    torch.save(old, tmp_path / "resumed" / STATE_FILE)
    resumed, metadata = load_checkpoint(run(TINY, data, tmp_path / "resumed"))
    expected, expected_metadata = load_checkpoint(uninterrupted)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert metadata.history == expected_metadata.history


def test_a_run_of_another_recipe_is_not_resumed(uninterrupted: Path, data: Path) -> None:
    with pytest.raises(TrainingError, match="another learning_rate, momentum"):
        run(replace(TINY, learning_rate=0.01, momentum=0.5), data, uninterrupted.parent)


def test_a_loss_that_is_not_finite_names_its_step(data: Path, tmp_path: Path) -> None:
    explosive = replace(TINY, learning_rate=1e12, clip_norm=None)
    with pytest.raises(
        TrainingError, match=r"the loss became (nan|inf) at step \d+: try a lower learning_rate"
    ):
        run(explosive, data, tmp_path)


def test_a_damaged_state_and_other_data_are_refused(uninterrupted: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes((uninterrupted.parent / STATE_FILE).read_bytes()[:5000])
    with pytest.raises(TrainingError, match=r"cannot resume from .*last\.ckpt"):
        run(TINY, data, tmp_path)
    shutil.copy(uninterrupted.parent / STATE_FILE, tmp_path / STATE_FILE)
    spec = TINY.preprocessing()
    less = (load_images(str(data), split, spec, limit=20) for split in ("train", "valid"))
    with pytest.raises(TrainingError, match="other data"):
        train(TINY, *less, tmp_path, accelerator="cpu")


def test_several_processes_end_with_one_checkpoint(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "residuum",
    ]
    command += ["train", "cifar10-resnet20", "--data", str(data), "--out", str(tmp_path), "--device", "cpu"]
    for field in (
        "epochs=1",
        "num_classes=3",
        "width=4",
        "batch_size=16",
        "warmup_epochs=0",
        "ema_decay=0.9",
    ):
        command += ["--set", field]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    _, metadata = load_checkpoint(tmp_path / CHECKPOINT_FILE)
    assert metadata.accuracy is not None
    assert metadata.history[-1]["step"] == 5


def test_images_of_a_folder_and_missing_splits(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "one.png").write_bytes(picture(COLORS[0], rng, size=48))
    spec = Preprocessing(resize=40, crop=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    images = load_images(str(tmp_path), "train", spec)
    assert images.images.shape == (2, 32, 32, 3)
    assert [label.label for label in images.classes] == ["cat", "dog"]
    with pytest.raises(DataError, match="no valid split"):
        load_images(str(tmp_path), "valid", spec)


def test_every_epoch_is_a_permutation() -> None:
    recipe = replace(TINY, batch_size=5)
    epochs = [torch.cat([batch_indices(e * 4 + i, 20, recipe) for i in range(4)]) for e in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(20)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_norms_and_biases_are_not_decayed() -> None:
    model = build("resnet20")
    decayed, kept = make_optimizer(TINY, model).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (TINY.weight_decay, 0.0)
    assert len(decayed["params"]) == 20
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))


def test_learning_rate_and_resolution_over_a_run() -> None:
    recipe = replace(TINY, epochs=10, warmup_epochs=2, learning_rate=1.0)
    assert [round(recipe.learning_rate_at(p), 3) for p in (0, 0.1, 0.2, 0.6, 1)] == [0, 0.5, 1, 0.5, 0]
    assert [recipe.resolution(p) for p in (0, 0.49, 0.5, 0.99)] == [16, 16, 32, 32]
    step = replace(recipe, schedule="step", warmup_epochs=0)
    assert [round(step.learning_rate_at(p), 3) for p in (0, 0.5, 0.75)] == [1, 0.1, 0.01]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny-imagenet", {}, "did you mean tiny-imagenet-[cg]pu"),
        ("cifar10-resnet20", {"epoch": "3"}, "no field 'epoch'"),
        ("cifar10-resnet20", {"epochs": "many"}, "epochs cannot be 'many'"),
        ("cifar10-resnet20", {"epochs": "0"}, "epochs must be 1 or more"),
        ("cifar10-resnet20", {"optimizer": "lion"}, "'sgd' or 'adamw'"),
        ("cifar10-resnet20", {"warmup_epochs": "164"}, "warmup_epochs"),
        ("cifar10-resnet20", {"resolutions": "((0.5, 32),)"}, "must end with"),
        ("cifar10-resnet20", {"resolutions": "64"}, "resolutions cannot be 64"),
        ("cifar10-resnet20", {"interpolation": "nearest"}, "interpolation cannot be"),
        ("cifar10-resnet20", {"test_crop": "72"}, "larger than test_resize"),
        ("cifar10-resnet20", {"crop_scale": "0.3"}, "crop_scale cannot be"),
        ("cifar10-resnet20", {"architecture": "resnet21"}, "unknown architecture"),
    ],
)
def test_a_bad_recipe_is_named(name: str, changes: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe(name, changes)


def test_words_for_true_and_false_are_understood() -> None:
    assert get_recipe("cifar10-resnet20", {"flip": "false", "clip_norm": "1"}).flip is False


def test_a_damaged_checkpoint_is_refused(uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(uninterrupted.read_bytes()[:1000])
    for path in (tmp_path / "cut.safetensors", tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match="cannot read"):
            load_checkpoint(path)


def test_recalibrated_statistics_are_those_of_served_images() -> None:
    recipe = replace(TINY, store_size=24, test_resize=40, test_crop=32)
    images = torch.randint(
        0, 256, (30, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    network = build("resnet20", width=4).train()
    recalibrate(network, images, recipe)
    x = as_served(images, recipe)
    with torch.inference_mode():
        stem = network.get_submodule("stem.conv")(x)
    assert x.shape == (30, 3, 32, 32)
    norm = network.get_submodule("stem.norm")
    assert torch.allclose(norm.running_mean, stem.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, stem.var((0, 2, 3)), rtol=1e-4)


def test_a_run_may_start_from_the_weights_of_another(uninterrupted: Path, data: Path, tmp_path: Path) -> None:
    start = uninterrupted
    recipe = replace(
        TINY, initial_weights=str(start), learning_rate=1e-9, weight_decay=0.0, recalibrate=False
    )
    before, _ = load_checkpoint(start)
    after, metadata = load_checkpoint(run(recipe, data, tmp_path / "run"))
    assert torch.allclose(after.head.weight, before.head.weight, atol=1e-5)
    assert metadata.recipe is not None
    assert metadata.recipe["initial_weights"] == str(start)
    with pytest.raises(TrainingError, match=r"initial_weights .* do not fit"):
        run(replace(recipe, width=5), data, tmp_path / "other")


def test_dropout_and_stochastic_depth_come_from_the_recipe(data: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, dropout=0.5, stochastic_depth=0.5, initialisation="xavier")
    model, _ = load_checkpoint(run(recipe, data, tmp_path / "run"))
    assert (model.spec.dropout, model.spec.stochastic_depth) == (0.5, 0.5)
