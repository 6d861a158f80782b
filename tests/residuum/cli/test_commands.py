"""The command line as a person uses it: its output, its exit code, and what only a process shows."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifact.manifest import read_manifest
from export.verify import synthetic_images
from models.checkpoint import save_checkpoint
from models.cifar import cifar_labels
from models.resnet import build
from models.zoo import ZOO
from residuum.cli.main import main
from service.runtime.loading import load_model
from service.settings import load_settings
from tests.conftest import ROOT
from tests.support.networks import liven, metadata_for

RANDOM = ("--weights", "random", "-o", "x")


def residuum(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which imports its modules once, and return what a process would."""
    command = [str(argument) for argument in arguments]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(command)
    said = []
    for stream in (out, err):
        stream.flush()
        said.append(stream.detach().getvalue().decode())  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(command, code, *said)


def residuum_process(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "residuum", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(autouse=True, scope="module")
def _one_engine() -> Iterator[None]:
    """Else several are timed by every command that opens a model."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RESIDUUM_ENGINE", "onnxruntime")
        environment.setenv("RESIDUUM_PRECISION", "fp32")
        yield


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "field.jpg"
    Image.fromarray(synthetic_images(1, 200, seed=0)[0]).crop((0, 0, 200, 150)).save(path)
    return path


def test_serving_loads_no_torch() -> None:
    code = """
import sys
from residuum.cli.main import make_parser

make_parser("serve")
import service.http.app

print("torch" in sys.modules)
"""
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
    for suffix in ("png", "npz", "json", "zip"):
        done = residuum("introspect", photograph, "--model", artifact, "-o", tmp_path / f"out.{suffix}")
        assert done.returncode == 0, done.stderr
        assert "stage3.2" in done.stdout
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.width > 500
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert arrays["maps/stage1.0/share"].shape == (32, 32)
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["blocks"]) == 9
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.testzip() is None
        names = {"introspection.json", "introspection.npz", "sheet.png"}
        assert set(archive.namelist()) == names | {
            f"blocks/{block['name']}.png" for block in document["blocks"]
        }
    gated = residuum(
        "introspect", photograph, "--model", artifact, "--gates", "stage2.1:0", "--json", "--maps", "none"
    )
    block = json.loads(gated.stdout)["blocks"][4]
    assert block["name"] == "stage2.1"
    assert block["rms"]["residual"] == 0


def test_introspect_shows_contributions_and_lesions(artifact: Path, photograph: Path, tmp_path: Path) -> None:
    """One block has a picture of its own; the table has what the document has."""
    out = tmp_path / "block.png"
    asked = (
        "introspect",
        photograph,
        "--model",
        artifact,
        "--blocks",
        "stage3.1",
        "--lesion",
        "--target",
        "3",
    )
    table = residuum(*asked, "-o", out)
    assert table.returncode == 0, table.stderr
    document = json.loads(residuum(*asked, "--json", "--maps", "none").stdout)
    assert document["target"]["index"] == 3
    (block,) = document["blocks"]
    [line] = [line for line in table.stdout.splitlines() if line.startswith("stage")]
    for number in (block["contribution"], block["lesion"]["delta_logit"], block["cosine"]):
        assert f"{number:+.2f}" in line
    assert block["lens"]["label"] in line
    assert f"logit {document['decomposition']['logit']:.2f} = stem" in table.stdout
    with Image.open(out) as picture:
        assert picture.width == 1600


def test_a_terminal_gets_a_table_of_its_width_and_no_colours_it_does_not_want(
    artifact: Path, photograph: Path
) -> None:
    asked = (sys.executable, "-m", "residuum", "introspect", photograph, "--model", artifact, "--lesion")
    colored = in_a_terminal(80, *asked)
    assert "\x1b[" in colored
    plain = in_a_terminal(80, *asked, NO_COLOR="1")
    assert "\x1b" not in plain
    rows = [line for line in plain.splitlines() if line.startswith("stage")]
    assert len(rows) == 9
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 80
    assert all("│" in line for line in rows)


def test_a_terminal_without_the_letters_gets_others(artifact: Path, photograph: Path) -> None:
    asked = ("introspect", photograph, "--model", artifact, "--blocks", "stage3")
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "residuum", *asked]
    done = subprocess.run(command, cwd=ROOT, env=ascii_only, capture_output=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert "stage3.2" in done.stdout.decode("ascii")


def in_a_terminal(columns: int, *command: str | Path, **environment: str) -> str:
    """What a command prints where its output is a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=kept | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    said = b""
    with suppress(OSError), os.fdopen(ours, "rb", 0) as output:  # how Linux says that the other end is closed
        while chunk := output.read(4096):
            said += chunk
    _, problems = process.communicate(timeout=300)
    assert process.returncode == 0, problems.decode()
    return said.decode()


@pytest.fixture(scope="module")
def other_photograph(photograph: Path) -> Path:
    path = photograph.with_name("other.png")
    Image.fromarray(synthetic_images(1, 120, seed=1)[0]).save(path)
    return path


def test_compare_puts_two_images_on_one_scale(
    artifact: Path, photograph: Path, other_photograph: Path, tmp_path: Path
) -> None:
    """About A's top class in both; as a table, a picture and a document."""
    asked = ("compare", photograph, other_photograph, "--model", artifact)
    done = residuum(*asked, "-o", tmp_path / "both.json")
    assert done.returncode == 0, done.stderr
    documents = json.loads((tmp_path / "both.json").read_text())
    a, b = documents["a"], documents["b"]
    assert a["target"]["index"] == b["target"]["index"] == a["predictions"][0]["index"]
    for first, second in zip(a["blocks"], b["blocks"], strict=True):
        [line] = [line for line in done.stdout.splitlines() if line.startswith(first["name"])]
        assert f"{first['share']['residual']:.2f}" in line
        assert f"{second['ratio']:.2f}" in line
        assert f"{second['contribution'] - first['contribution']:+.2f}" in line
    assert residuum(*asked, "-o", tmp_path / "both.png").returncode == 0
    with Image.open(tmp_path / "both.png") as picture:
        assert picture.width == 1600
    chosen = residuum(*asked, "--target", "3", "--quantities", "rms", "--json")
    assert {json.loads(chosen.stdout)[letter]["target"]["index"] for letter in "ab"} == {3}


def test_models_lists_the_embedded_one_and_the_folder(artifact: Path) -> None:
    done = residuum("models", "--artifacts", artifact.parent, "--json")
    rows = json.loads(done.stdout)
    assert [row["model"] for row in rows] == ["embedded", "resnet20"]
    assert rows[1]["num_parameters"] == 269_722
    assert "resnet20" in residuum("models", "--artifacts", artifact.parent).stdout


def test_a_checkpoint_becomes_an_artifact_that_classifies(photograph: Path, tmp_path: Path) -> None:
    model = liven(build("resnet20", depths=(1, 1), width=4))
    save_checkpoint(tmp_path / "checkpoint.safetensors", model, metadata_for(model))
    path = tmp_path / "checkpoint.pth"  # its content counts, and not its name
    (tmp_path / "checkpoint.safetensors").rename(path)
    done = residuum("pull", path, "-o", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    assert "introspect" in done.stdout
    assert residuum("classify", photograph, "--artifacts", tmp_path, "--model", "small").returncode == 0
    provenance = read_manifest(tmp_path / "small").provenance
    assert (provenance.source, provenance.weights, provenance.options) == (
        "checkpoint checkpoint.pth",
        None,
        None,
    )


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without labels."""
    folder = tmp_path_factory.mktemp("photographs")
    for index, pixels in enumerate(synthetic_images(24, 40, seed=3)):
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def test_export_with_random_weights_in_other_precisions(
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """From a row of the zoo to a server's model, which says that its answers mean nothing."""
    few = replace(
        ZOO["resnet20"], name="resnet6", depths=(1, 1), aliases=(), num_parameters=None, num_macs=None
    )
    monkeypatch.setitem(ZOO, "resnet6", few)
    monkeypatch.setattr("engines.selection.trial.TIMED_S", 0.0)
    out = tmp_path / "small"
    asked = ["--precision", "fp16", "--precision", "int8", "--calibration", str(photographs)]
    code = main(["export", "resnet6", "--weights", "random", "--seed", "10", *asked, "-o", str(out)])
    said = capsys.readouterr()
    assert (code, said.err) == (0, "")
    assert said.out.splitlines()[-1] == str(out)
    for precision in ("fp16", "int8"):
        assert f"classify: {precision} gives fp32's top class for " in said.out
    assert "of 24 images without labels" in said.out
    assert "images/s" in said.out
    manifest = read_manifest(out)
    assert manifest.name == "small"
    assert (manifest.provenance.weights, manifest.provenance.seed) == ("random", 10)
    assert manifest.provenance.source == "random weights, seed 10"
    int8 = manifest.graph("classify", "int8")
    assert int8 is not None
    assert int8.quantization is not None
    assert (int8.quantization.dataset, int8.quantization.num_images) == (photographs.name, 24)
    for graph in manifest.graphs:
        assert "onnxruntime" in {speed.engine for speed in graph.speeds}, graph.file
        assert all(speed.batch == 8 and speed.images_per_s > 0 for speed in graph.speeds)
    assert {path.name for path in out.iterdir()} == {"manifest.json", *manifest.files()}
    load_model(out, load_settings(max_batch_size=1)).close()
    assert "small has random weights: labels mean nothing" in caplog.text


def test_export_prunes_and_fine_tunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both trainings of an export, on class folders; a network with random weights has CIFAR's classes."""
    few = replace(
        ZOO["resnet20"], name="resnet4", depths=(1,), width=16, aliases=(), num_parameters=None, num_macs=None
    )
    monkeypatch.setitem(ZOO, "resnet4", few)
    monkeypatch.setattr("engines.selection.trial.TIMED_S", 0.0)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in (("train", 13), ("val", 2)):
        for label in cifar_labels(10):
            folder = tmp_path / "data" / split / label.label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    asked = ["--prune", "0.5", "--precision", "int8", "--qat-epochs", "1", "--allow-loss"]
    data = ["--data", "./data", "--calibration", "./data", "--num-calibration", "16"]
    code = main(["export", "resnet4", "--weights", "random", *asked, *data, "-o", "thin"])
    assert code == 0, capsys.readouterr().err
    manifest = read_manifest(tmp_path / "thin")
    assert manifest.provenance.pruned == 0.5
    assert (tmp_path / "runs" / "thin-pruned-0.5" / "checkpoint.safetensors").is_file()
    recipe = manifest.provenance.recipe or {}
    assert recipe["pruning"]["hidden"] == [[8]]  # type: ignore[index]
    assert recipe["fine_tuning"]
    int8 = manifest.graph("classify", "int8")
    assert int8 is not None
    assert int8.quantization is not None
    assert (int8.quantization.qat_epochs, int8.quantization.dataset) == (1, "data")


def test_bench_ends_with_json(artifact: Path) -> None:
    done = residuum_process("bench", "--quick", "--seconds", "0.02", "--batch", "2", "--model", artifact)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout.splitlines()[-1])["models"]
    assert 40e6 < model["macs"] < 42e6  # He et al. 2016: ResNet-20 has 41 M
    assert {row["graph"] for row in model["rows"]} == {"classify", "introspect", "attribute", "float input"}
    assert all(row["right"] and row["images_per_s"] > 0 for row in model["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classify", "x.jpg", "--model", "nothing"), "there is no artifact of that name"),
        (("classify", "x.jpg", "--top-k", "0"), "--top-k 0"),
        (("introspect", "x.jpg"), "x.jpg: No such file"),
        (("introspect", "x.jpg", "-o", "x.bmp"), "must be .json, .npz, .png or .zip"),
        (("introspect", "x.jpg", "-o", "x.png", "--quantities", "lens"), "no map is named"),
        (("introspect", "x.jpg", "-o", "x.zip", "--quantities", "lens"), "no map is named"),
        (("compare", "x.jpg", "y.jpg", "-o", "x.png", "--quantities", "lens"), "no map is named"),
        (("compare", "x.jpg", "y.jpg"), "x.jpg: No such file"),
        (("compare", "x.jpg", "y.jpg", "-o", "x.npz"), "must be .png or .json"),
        (("introspect", "x.jpg", "--gates", "stage9.0:1"), "stage9.0"),
        (("introspect", "x.jpg", "--alpha", "7"), "--alpha 7"),
        (("serve", "--port", "many"), "--port many"),
        (("train", "nothing", "--data", "x"), "unknown recipe"),
        (("train", "cifar10-resnet20"), "--data is needed"),
        (("train", "cifar10-resnet20", "--data", "x", "--set", "epochs"), "expected FIELD=VALUE"),
        (("export", "absent.safetensors", "-o", "x"), "absent.safetensors: no such file"),
        (("export", "resnet2O", *RANDOM), "unknown architecture"),
        (("export", "resnet20", *RANDOM, "--precision", "int8"), "--precision int8 needs --calibration"),
        (("export", "resnet20", *RANDOM, "--calibration", "./empty"), "there are no images in it"),
        (("export", "resnet20", *RANDOM, "--calibration", "./absent"), "there is no such folder"),
        (
            ("export", "resnet20", *RANDOM, "--calibration", "./empty", "--num-calibration", "0"),
            "at least one",
        ),
        (("export", "resnet20", *RANDOM, "--prune", "0.3"), "--prune fine-tunes and is measured on"),
        (("export", "resnet20", *RANDOM, "--qat-epochs", "1"), "--qat-epochs fine-tunes weights for"),
        (("export", "resnet20", *RANDOM, "--labels", "x"), "--labels is for files of other people's weights"),
        (("pull", "resnet20", *RANDOM, "--crop", "24"), "--crop is for other people's weights"),
        (("pull", "absent.th", "-o", "x"), "absent.th: no such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("residuum: ")
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_so_it_is_in_a_process(tmp_path: Path) -> None:
    done = residuum_process("classify", "x.jpg", "--model", "nothing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_compare_names_the_image_that_it_cannot_read(
    artifact: Path, photograph: Path, tmp_path: Path
) -> None:
    (tmp_path / "noise.png").write_bytes(b"noise")
    done = residuum("compare", photograph, tmp_path / "noise.png", "--model", artifact)
    assert done.returncode == 2
    assert "noise.png: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_json_goes_through_a_pipe_whole(artifact: Path, photograph: Path) -> None:
    """UTF-8, and nothing else on standard output."""
    done = residuum_process("introspect", photograph, "--model", artifact, "--json")
    assert json.load(io.StringIO(done.stdout))["model"]["name"] == "resnet20"
