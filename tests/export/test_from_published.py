"""`residuum pull` from end to end.

Files as torchvision, timm and transformers write them, made on the spot and served on loopback, become
artifacts that the real engine runs with the logits of the library that wrote them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from artifact.manifest import Label, Preprocessing, PublishedAccuracy, read_manifest
from artifact.preprocess import preprocess
from artifact.store import find_artifact
from export.options import OptionError, read_labels
from export.precisions import KINDS
from export.source import Request, is_file
from models import pretrained
from models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from models.pixels import normalised
from models.pretrained import Pretrained
from models.resnet import build
from models.zoo import ZOO
from residuum.cli.main import main
from service.runtime.loading import load_model
from service.settings import load_settings
from tests.support import oracles
from tests.support.files_server import FilesServer, files_server
from tests.support.images import encode, photograph
from tests.support.live import live_server
from tests.support.networks import liven

PIXELS = 64
PHOTO = encode(photograph(90, 70), "PNG")
# A network that every one of the three libraries can build, with few blocks; rows for it in both tables.
RESNET10 = replace(ZOO["resnet18"], name="resnet10", depths=(1, 1, 1, 1), num_parameters=None, aliases=())
NUM_PARAMETERS = 5_418_792
PUBLISHED = PublishedAccuracy(dataset="ImageNet-1k", top1=0.5, top5=0.75, pixels=72)


@pytest.fixture(autouse=True)
def _one_graph_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is pulled matters here, and graphs take longest."""
    for precision in ("fp32", "fp16", "bf16"):
        monkeypatch.setitem(KINDS, precision, ("classify",))


def livened(network: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with weights and BatchNorm statistics that are not those of a new network."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.reset_parameters()
    return liven(network, seed)  # type: ignore[arg-type]


def as_torchvision(folder: Path) -> tuple[nn.Module, Path]:
    oracles.torchvision()
    from torchvision.models.resnet import BasicBlock, ResNet

    network = livened(ResNet(BasicBlock, [1, 1, 1, 1]))
    torch.save(network.state_dict(), folder / "weights.pth")
    return network, folder / "weights.pth"


def as_timm(folder: Path) -> tuple[nn.Module, Path]:
    oracles.timm()
    from timm.models.resnet import BasicBlock, ResNet

    network = livened(ResNet(BasicBlock, [1, 1, 1, 1]), seed=1)
    save_file(network.state_dict(), folder / "model.safetensors")
    return network, folder / "model.safetensors"


def as_transformers(folder: Path) -> tuple[nn.Module, Path]:
    transformers = oracles.transformers()
    config = transformers.ResNetConfig(
        hidden_sizes=[64, 128, 256, 512], depths=[1, 1, 1, 1], layer_type="basic", num_labels=1000
    )
    network = livened(transformers.ResNetForImageClassification(config), seed=2)
    save_file(network.state_dict(), folder / "model.safetensors")
    return network, folder / "model.safetensors"


class Sources:
    """Loopback instead of download.pytorch.org and huggingface.co, with one row of each kind in the table."""

    def __init__(self, server: FilesServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.networks: dict[str, nn.Module] = {}
        self.sha256: dict[str, str] = {}
        self.rows = (
            self._row("torchvision", as_torchvision),
            self._row("timm", as_timm),
            self._row("transformers", as_transformers),
        )
        config = {
            "architecture": "resnet10",
            "pretrained_cfg": {
                "input_size": [3, PIXELS, PIXELS],
                "crop_pct": 0.9,
                "interpolation": "bicubic",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.25, 0.25, 0.25],
            },
        }
        server.add("timm/resnet10.timm/resolve/main/config.json", json.dumps(config).encode())
        processor = {
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "size": PIXELS,
            "crop_pct": 0.875,
            "resample": 3,
            "image_mean": IMAGENET_MEAN,
            "image_std": IMAGENET_STD,
        }
        server.add(
            "microsoft/resnet-10/resolve/main/preprocessor_config.json", json.dumps(processor).encode()
        )

    def _row(self, kind: Any, write: Callable[[Path], tuple[nn.Module, Path]]) -> Pretrained:
        folder = self.folder / kind
        folder.mkdir()
        self.networks[kind], path = write(folder)
        data = path.read_bytes()
        sha256 = self.sha256[kind] = hashlib.sha256(data).hexdigest()
        location = {
            "torchvision": f"resnet10-{sha256[:8]}.pth",
            "timm": "timm/resnet10.timm",
            "transformers": "microsoft/resnet-10",
        }[kind]
        spec = Preprocessing(resize=72, crop=PIXELS, mean=IMAGENET_MEAN, std=IMAGENET_STD)
        is_file_known = kind == "torchvision"
        row = Pretrained(
            "resnet10",
            kind,
            kind,
            location,
            "bsd-3-clause",
            NUM_PARAMETERS,
            PUBLISHED,
            sha256[:8] if is_file_known else None,
            spec if is_file_known else None,
        )
        if is_file_known:
            self.server.add(row.weight_paths()[0], data)
        else:  # as the hub does it: a redirect that tells the SHA-256, and a store
            url = self.server.add(f"store/{kind}", data, etag='"' + "e" * 64 + '"')
            self.server.add(row.weight_paths()[0], redirect=url, headers={"X-Linked-ETag": f'"{sha256}"'})
        return row


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sources]:
    with files_server() as server:
        yield Sources(server, tmp_path_factory.mktemp("sources"))


@pytest.fixture
def pull(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`residuum pull` in a folder of its own; exit code, standard output and error."""
    monkeypatch.setitem(ZOO, "resnet10", RESNET10)
    monkeypatch.setattr(pretrained, "PRETRAINED", (*sources.rows, *pretrained.PRETRAINED))
    # Nothing is at the mirror.
    for name in ("HUB_URL", "PYTORCH_URL"):
        monkeypatch.setenv(f"RESIDUUM_{name}", f"{sources.server.url}/mirror, {sources.server.url}")
    monkeypatch.setenv("RESIDUUM_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("engines.selection.trial.TIMED_S", 0.0)
    sources.server.seen.clear()

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["pull", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def logits_of(artifact: Path) -> tuple[NDArray[np.float32], NDArray[np.uint8], Preprocessing]:
    """What the service's own engine says of the photograph, and what it was shown."""
    model = load_model(
        artifact, load_settings(engine="onnxruntime", precision="fp32", max_batch_size=1, threads=1)
    )
    try:
        spec = model.manifest.preprocessing
        pixels = preprocess(PHOTO, spec).pixels
        (future,) = model.classify.submit([{"images": pixels}])
        return np.asarray(future.result().outputs["logits"]), pixels, spec
    finally:
        model.close()


@torch.no_grad()
def assert_same_logits(artifact: Path, network: nn.Module) -> None:
    logits_K, pixels, spec = logits_of(artifact)
    found = network(normalised(pixels[None], spec, torch.float64).float())
    theirs_K = getattr(found, "logits", found)[0].numpy()
    assert np.abs(logits_K - theirs_K).max() <= 1e-4 * np.ptp(theirs_K)


@pytest.mark.parametrize("kind", ["torchvision", "timm", "transformers"])
def test_a_name_becomes_a_served_model(
    sources: Sources, pull: Callable[..., tuple[int, str, str]], tmp_path: Path, kind: str
) -> None:
    code, out, err = pull(f"resnet10:{kind}")
    assert code == 0, err
    served_at_another_size = f"published top-1 is of images of 72 pixels; {PIXELS} are served"
    assert served_at_another_size in err
    artifact = tmp_path / "artifacts" / "resnet10"
    assert out.splitlines()[-1] == str(artifact)
    manifest = read_manifest(artifact)
    provenance = manifest.provenance
    row = next(row for row in sources.rows if row.kind == kind)
    assert provenance.source == f"{sources.server.url}/{row.weight_paths()[0]}"
    assert provenance.weights_sha256 == sources.sha256[kind]
    assert (provenance.weights, provenance.licence) == (row.key, "bsd-3-clause")
    assert provenance.published_accuracy == PUBLISHED
    assert (provenance.num_parameters, provenance.options) == (NUM_PARAMETERS, {})
    assert manifest.labels[0] == Label(label="tench", wnid="n01440764")
    spec = manifest.preprocessing
    wanted = {"torchvision": (72, "bilinear"), "timm": (71, "bicubic"), "transformers": (73, "bicubic")}
    assert (spec.resize, spec.interpolation) == wanted[kind]
    assert (spec.crop, spec.mean) == (PIXELS, (0.5, 0.5, 0.5) if kind == "timm" else IMAGENET_MEAN)
    assert_same_logits(find_artifact("resnet10", tmp_path / "artifacts"), sources.networks[kind])
    assert sources.server.seen[0].path.startswith("/mirror/")
    check_what_happens_the_next_time(pull, tmp_path, kind, len(sources.server.seen), sources)


def check_what_happens_the_next_time(
    pull: Callable[..., tuple[int, str, str]], folder: Path, kind: str, requests: int, sources: Sources
) -> None:
    """The same again does nothing; anything else begins anew, which goes wrong offline without a cache."""
    artifact = folder / "artifacts" / "resnet10"
    code, out, err = pull(f"resnet10:{kind}")
    assert (code, out.splitlines()[-1]) == (0, str(artifact))
    assert "is there already, of these weights; --force makes it again" in err
    document = json.loads(pull(f"resnet10:{kind}", "--json")[1])
    assert (document["made"], document["artifact"]) == (False, str(artifact))
    assert len(sources.server.seen) == requests
    empty = ("--offline", "--cache", str(folder / "empty"))
    other = "timm" if kind == "torchvision" else "torchvision"
    key = next(row.key for row in sources.rows if row.kind == kind)
    refused = "choose another --name, or --force replaces it"
    for arguments, message in (
        ((f"resnet10:{kind}", "--force"), "is not in the cache"),
        ((f"resnet10:{other}",), f"{artifact} holds {key}: {refused}"),
        ((f"resnet10:{kind}", "--crop", "48"), f"{artifact} holds {key}, made with other options: {refused}"),
    ):
        code, _, err = pull(*arguments, *empty)
        assert code == 2
        assert message in err
    (artifact / "classify.fp32.onnx").write_bytes(b"rotten")
    assert pull(f"resnet10:{kind}", *empty)[0] == 2


def test_what_goes_wrong_is_one_line(
    sources: Sources, pull: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    cases = [
        (("resnet5O",), "did you mean resnet50"),
        (("resnet50:v9",), "resnet50 has no weights 'v9'"),
        (("resnet10:timm", "--offline"), "not in the cache"),
        (("resnet50",), f"{sources.server.url}/models/resnet50-11ad3fa6.pth: 404"),
        (("resnet50:a1",), f"{sources.server.url}/timm/resnet50.a1_in1k/resolve/main/config.json: 404"),
        (("resnet10:torchvision", "--architecture", "resnet18"), "--architecture is for files"),
        (("resnet10:torchvision", "--crop", "80"), "--crop 80 does not fit into --resize 72"),
        (("resnet10:timm", "--crop", "80", "--resize", "72"), "--crop 80 does not fit into --resize 72"),
        (("resnet10:timm", "--crop", "0"), "--crop 0: expected 1 to 4096 pixels"),
        (("resnet10:timm", "--resize", "999999"), "--resize 999999: expected 1 to 4096 pixels"),
        (("resnet10:timm", "--mean", "nan,0,0"), "--mean nan,0,0: must lie in [0, 1]"),
        (("resnet10:timm", "--mean", "123,116,103"), "--mean 123,116,103: must lie in [0, 1]"),
        (("resnet10:timm", "--std", "1,1,inf"), "--std 1,1,inf: must be above 0, and finite"),
        (("./absent.pth",), "absent.pth: no such file"),
        ((tmp_path,), f"{tmp_path} is a folder"),
        (("/",), "/ is a folder"),
        (("resnet10:torchvision", "--name", "../up"), "cannot be a model's name"),
        (("resnet10:torchvision", "--timeout", "0"), "--timeout 0"),
        (("resnet10:torchvision", "--pytorch-url", "nowhere"), "expected http:// or https://"),
    ]
    for arguments, message in cases:
        code, out, err = pull(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err.splitlines()[-1], arguments
    assert not (tmp_path / "artifacts").exists()


def test_another_number_of_parameters_is_refused(
    sources: Sources, pull: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(row, num_parameters=7) for row in sources.rows]
    monkeypatch.setattr(pretrained, "PRETRAINED", tuple(rows))
    code, _, err = pull("resnet10:torchvision")
    assert code == 2
    assert f"makes a network of {NUM_PARAMETERS:,} parameters; 7 were published" in err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_page_instead_of_a_file_does_not_stay(
    sources: Sources, pull: Callable[..., tuple[int, str, str]], tmp_path: Path, name: str
) -> None:
    """Status 200, and nobody tells its SHA-256."""
    path = f"timm/resnet10.timm/resolve/main/{name}"
    good = sources.server.files[f"/{path}"]
    try:
        sources.server.add(path, b"<html>Please log in</html>")
        code, _, err = pull("resnet10:timm")
    finally:
        sources.server.files[f"/{path}"] = good
    assert code == 2
    assert "it was removed from the cache, and the next run fetches it again" in err.splitlines()[-1]
    assert not list((tmp_path / "cache").rglob(name))
    assert not list((tmp_path / "cache").rglob(f"{name}.sha256"))


def test_the_table(pull: Callable[..., tuple[int, str, str]], sources: Sources) -> None:
    code, out, _ = pull()
    assert code == 0
    assert "resnet50:IMAGENET1K_V2" in out
    rows = json.loads(pull("--json")[1])
    assert len({row["key"] for row in rows}) == len(rows) > 100
    (default,) = (row for row in rows if row["architecture"] == "resnet50" and row["default"])
    assert default["key"] == "torchvision/resnet50:IMAGENET1K_V2"
    assert sources.server.seen == []


def cifar_file(folder: Path, name: str = "weights.pth", num_classes: int = 10) -> Path:
    """An 8-layer network for 32x32 images in a checkpoint, with the usual names and a wrapper's prefix."""
    model = liven(build("resnet20", depths=(1, 1, 1), num_classes=num_classes, seed=1))
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    path = folder / name
    torch.save({"state_dict": foreign_names(state), "epoch": 3}, path)
    return path


def foreign_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Ours -> the usual CIFAR naming."""
    pairs = [
        ("stem.conv", "conv1"),
        ("stem.norm", "bn1"),
        ("branch.", ""),
        ("norm", "bn"),
        ("head", "linear"),
    ]
    pairs += [(f"stage{index}", f"layer{index}") for index in (1, 2, 3)]
    renamed = {}
    for key, value in state.items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        renamed[key] = value
    return renamed


def test_a_file_with_all_that_can_be_guessed(
    pull: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = cifar_file(tmp_path)
    code, _, err = pull(path)
    assert code == 0, err
    assert "resnet8, 10 classes: those of CIFAR-10; --labels gives others" in err
    assert "else --set shortcut=pad-after" in err
    assert "resize 32, crop 32, bilinear, mean 0.4914,0.4822,0.4465" in err
    manifest = read_manifest(tmp_path / "artifacts" / "weights")
    assert (manifest.name, manifest.architecture) == ("weights", "resnet8")
    assert [label.label for label in manifest.labels][:2] == ["airplane", "automobile"]
    assert manifest.provenance.source == "weights.pth"
    assert manifest.provenance.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (manifest.provenance.licence, manifest.provenance.weights) == (None, None)
    assert "is there already" in pull(path)[2]
    trained = manifest.provenance.model_copy(update={"options": None, "source": "run7"})
    manifest.model_copy(update={"provenance": trained}).write(tmp_path / "artifacts" / "weights")
    assert "weights holds run7, made with other options: choose" in pull(path)[2]
    cifar_file(tmp_path, num_classes=7)
    code, _, err = pull(path)
    assert code == 2
    assert "weights holds run7: choose another --name" in err
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    options = ("--architecture", "resnet20", "--set", "depths=1,1,1", "--std", "1,1,1")
    code, _, err = pull(path, "--name", "seven", *options, "--labels", tmp_path / "two.txt")
    assert code == 2
    assert "2 labels for 7 classes" in err


def test_a_file_with_all_that_can_be_told(pull: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = cifar_file(tmp_path)
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"thing {index}" for index in range(10)))
    options = ["--name", "mine", "--architecture", "ResNet-20"]
    options += ["--set", "shortcut=pad-after", "--set", "depths=1,1,1"]
    options += ["--labels", str(labels), "--resize", "36", "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]
    code, _, err = pull(path, *options, "--interpolation", "lanczos")
    assert code == 0, err
    manifest = read_manifest(tmp_path / "artifacts" / "mine")
    assert manifest.labels[9].label == "thing 9"
    assert manifest.preprocessing == Preprocessing(
        resize=36, crop=32, interpolation="lanczos", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)
    )
    assert manifest.provenance.options == {
        "architecture": "resnet20",
        "changes": {"shortcut": "pad-after", "depths": "1,1,1"},
        "labels_sha256": hashlib.sha256(labels.read_bytes()).hexdigest(),
        "preprocessing": {
            "resize": 36,
            "interpolation": "lanczos",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
        },
    }
    assert "is there already" in pull(path, *options, "--interpolation", "lanczos")[2]
    assert "made with other options" in pull(path, "--name", "mine")[2]
    labels.write_text(labels.read_text().upper())
    assert "made with other options" in pull(path, *options, "--interpolation", "lanczos")[2]
    network = liven(build("resnet20", depths=(1, 1, 1), shortcut="pad-after", seed=1))
    assert_same_logits(tmp_path / "artifacts" / "mine", network)


def test_precisions_are_asked_for_like_other_options(
    pull: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = cifar_file(tmp_path)
    code, out, err = pull(path, "--precision", "fp16")
    assert code == 0, err
    assert "fp16" in out
    artifact = tmp_path / "artifacts" / "weights"
    manifest = read_manifest(artifact)
    made = [(graph.kind, graph.precision) for graph in manifest.graphs]
    assert made == [(kind, name) for name in ("fp32", "fp16") for kind in KINDS[name]]
    assert manifest.provenance.options == {"precisions": ["fp16"]}
    assert "report.md" in manifest.reports
    assert "is there already" in pull(path, "--precision", "fp16", "--precision", "fp32")[2]
    for others in ((), ("--precision", "bf16"), ("--precision", "fp16", "--precision", "bf16")):
        code, _, err = pull(path, *others)
        assert code == 2, others
        assert "made with other options: choose another --name" in err, others
    assert read_manifest(artifact) == manifest


@pytest.mark.parametrize("name", ["weights.th", "weights.safetensors", "weights"])
def test_export_takes_other_peoples_weights_whatever_the_file_is_called(
    pull: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    cifar_file(tmp_path, name)
    out = tmp_path / "elsewhere"
    assert main(["export", name, "-o", str(out), "--name", "mine"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(out)
    assert "those of CIFAR-10; --labels gives others" in said.err
    manifest = read_manifest(out)
    assert (manifest.name, manifest.architecture, manifest.provenance.source) == ("mine", "resnet8", name)
    assert "is there already" in pull(name, "-o", out, "--name", "mine")[2]


def test_export_takes_a_published_name(
    pull: Callable[..., tuple[int, str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "resnet10:timm", "-o", str(tmp_path / "elsewhere")]) == 0
    capsys.readouterr()
    manifest = read_manifest(tmp_path / "elsewhere")
    assert (manifest.name, manifest.provenance.weights) == ("elsewhere", "timm/resnet10.timm")
    assert "is there already" in pull("resnet10:timm", "-o", tmp_path / "elsewhere")[2]


def test_mistakes_about_a_file(pull: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    path = cifar_file(tmp_path)
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    (tmp_path / "text.pth").write_text("no weights")
    cases = [
        ((path, "--labels", tmp_path / "few.txt"), "2 labels for 10 classes"),
        ((path, "--labels", tmp_path / "absent.txt"), "absent.txt: No such file"),
        ((path, "--set", "colour=red"), "--set colour: no such field"),
        ((path, "--set", "width=wide"), "--set width=wide: "),
        (
            (path, "--set", "variant=plain", "--set", "stochastic_depth=0.5"),
            "--set variant=plain --set stochastic_depth=0.5: ",
        ),
        ((path, "--set", "width=0"), "--set width=0: "),
        ((path, "--set", "depths="), "--set depths=: "),
        ((path, "--set", "shortcut=bridge"), "--set shortcut=bridge: "),
        ((path, "--set", "dropout=1"), "dropout must lie in [0, 1)"),
        ((path, "--set", "num_classes=7"), "--set num_classes: no such field; there are: depths, branch"),
        ((path, "--set", "width"), "expected FIELD=VALUE"),
        ((path, "--architecture", "resnet2O"), "unknown architecture"),
        ((path, "--architecture", "resnet32"), "do not fit resnet32"),
        ((path, "--std", "0.1,0.1,0"), "--std 0.1,0.1,0: must be above 0"),
        ((tmp_path / "text.pth",), "text.pth"),
    ]
    for arguments, message in cases:
        code, out, err = pull(*arguments)
        assert (code, out) == (2, ""), arguments
        assert message in err.splitlines()[-1], arguments


def test_which_names_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("")
    files = ("weights.pth", "x.safetensors", "./resnet50", "/a/b", "~/x", "plain")
    assert all(is_file(name) for name in files)
    assert not any(is_file(name) for name in ("resnet50", "resnet50:v1", "timm/resnet50.a1_in1k"))
    assert Request("resnet50", tmp_path).changes == {}


@pytest.mark.parametrize(
    "text",
    [
        "cat\ndog\n\n",
        '["cat", "dog"]',
        '{"1": "dog", "0": "cat"}',
        '[{"label": "cat"}, {"label": "dog", "wnid": null}]',
    ],
)
def test_labels(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels"
    path.write_text(text)
    assert [label.label for label in read_labels(path)] == ["cat", "dog"]


@pytest.mark.parametrize("text", ['{"0": "cat", "2": "dog"}', "[1, 2]", '["cat"', '{"a": "b"}'])
def test_labels_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(OptionError, match="expected one name a line, or JSON"):
        read_labels(path)


def test_a_real_name_is_pulled_then_served(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of the real table, at its real size, served beside another model; the first is the default."""
    network = livened(oracles.timm().create_model("resnet18"))
    save_file(network.state_dict(), weights := tmp_path / "model.safetensors")
    config = {"pretrained_cfg": oracles.timm().models.get_pretrained_cfg("resnet18.a1_in1k").to_dict()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESIDUUM_CACHE", str(tmp_path / "cache"))
    with files_server() as server:
        base = "timm/resnet18.a1_in1k/resolve/main"
        server.add(f"{base}/config.json", json.dumps(config).encode())
        server.add(f"{base}/model.safetensors", weights.read_bytes(), cuts=[20_000_000])
        monkeypatch.setenv("RESIDUUM_HUB_URL", server.url)
        # Small pictures, for the sake of time.
        assert main(["pull", "resnet18", "--resize", "64", "--crop", "64"]) == 0
        assert server.seen[-1].headers["range"] == "bytes=20000000-"
    assert "no SHA-256 is published" in capsys.readouterr().err
    shutil.copytree(artifact, tmp_path / "artifacts" / "resnet20")
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in listed] == ["embedded", "resnet18", "resnet20"]
    pulled = tmp_path / "artifacts" / "resnet18"
    assert read_manifest(pulled).provenance.weights == "timm/resnet18.a1_in1k"
    assert_same_logits(pulled, network)
    settings = {
        "artifacts": tmp_path / "artifacts",
        "model": "resnet18,resnet20",
        "threads": 1,
        "max_batch_size": 1,
    }
    with live_server(**settings) as live:
        document = httpx.post(f"{live.url}/classify", content=PHOTO).json()
        assert document["model"] == "resnet18"
        assert document["results"][0]["predictions"][0]["wnid"].startswith("n0")
        other = httpx.post(f"{live.url}/classify", params={"model": "resnet20"}, content=PHOTO).json()
        assert other["model"] == "resnet20"
