"""Only what is whole and right is served."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifact.manifest import ManifestError, read_manifest, sha256_of
from artifact.store import ArtifactNotFound, find_artifact
from engines.engine import Engine
from engines.onnxruntime import OnnxRuntimeEngine
from service.errors import LoadRefused, NotReady, UnknownModel
from service.runtime.loading import load_model
from service.runtime.model import LoadedModel
from service.runtime.opening import LoadError
from service.runtime.repository import Repository
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import info


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        engine="onnxruntime",
        precision="fp32",
        device="cpu",
        threads=1,
        max_batch_size=2,
        engine_cache=tmp_path / "cache",
    )


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    """An artifact that may be damaged."""
    return Path(shutil.copytree(artifact, tmp_path / "artifacts" / "copy"))


def loaded(settings: Settings) -> Repository:
    """A repository with the models that the settings name."""
    made = Repository(settings)
    made.load_configured()
    return made


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def test_loads_warms_and_answers(artifact: Path, settings: Settings) -> None:
    model = load_model(artifact, settings)
    assert model.introspect is not None
    assert list(model.classify.batch_ms) == list(model.introspect.batch_ms) == [1, 2]
    pixels = np.asarray(Image.open(artifact / model.manifest.golden_image))
    row = {"images": pixels, "gates": np.ones(len(model.manifest.blocks), np.float32)}
    [introspected] = model.introspect.submit([row])
    [classified] = model.classify.submit([{"images": pixels}])
    graph = model.manifest.graph("classify")
    assert graph is not None
    for future in (introspected, classified):
        np.testing.assert_allclose(future.result(60).outputs["logits"], graph.golden_logits, atol=1e-3)
    model.close()


def test_what_runs_each_graph_is_told(artifact: Path, settings: Settings) -> None:
    model = load_model(artifact, settings)
    assert list(model.graphs) == ["classify", "introspect", "attribute"]
    for graph in model.graphs.values():
        assert (graph.precision, graph.engine.name, graph.engine.mode) == ("fp32", "onnxruntime", "cpu")
        [trial] = graph.trials
        assert (trial.chosen, trial.engine, graph.remembered) == (True, "onnxruntime", False)
    assert (model.precision, model.engine) == ("fp32", model.graphs["classify"].engine)
    model.close()


def test_engines_are_closed_after_their_batchers(artifact: Path, settings: Settings) -> None:
    model = load_model(artifact, settings)
    model.close()
    for graph in model.graphs.values():
        assert not any(hasattr(engine, "_instances") for engine in graph.engines)


def test_what_was_opened_is_closed_where_a_later_graph_fails(
    copy: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[object] = []
    close = OnnxRuntimeEngine.close

    def note(engine: OnnxRuntimeEngine) -> None:
        closed.append(engine)
        close(engine)

    monkeypatch.setattr(OnnxRuntimeEngine, "close", note)
    change_golden(copy)  # of the introspect graph
    with pytest.raises(LoadError, match="introspect"):
        load_model(copy, settings)
    assert len(closed) == 2


def test_random_weights_are_warned_of(
    copy: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    load_model(copy, settings).close()
    assert "random weights" not in caplog.text
    change_manifest(copy, lambda manifest: manifest["provenance"].update(weights="random"))
    load_model(copy, settings).close()
    assert "resnet20 has random weights: labels mean nothing" in caplog.text


def test_an_engine_that_does_not_start_is_refused(
    copy: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "engines.openvino", None)
    change_manifest(copy, lambda manifest: [g.update(engines=["openvino"]) for g in manifest["graphs"]])
    with pytest.raises(LoadError, match="engine openvino is installed, but does not start: "):
        load_model(copy, settings.model_copy(update={"engine": "openvino"}))


def test_loading_can_be_stopped(artifact: Path, settings: Settings) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(LoadError, match="stopped while loading"):
        load_model(artifact, settings, stop)


def test_the_embedded_model_loads(embedded: Path, settings: Settings) -> None:
    assert find_artifact("embedded", Path("nowhere")).samefile(embedded)
    load_model(embedded, settings).close()


def test_names_and_the_default(artifact: Path, copy: Path, settings: Settings) -> None:
    change_manifest(copy, lambda manifest: manifest.update(name="second"))
    wanted = settings.model_copy(update={"model": (str(artifact), "copy"), "artifacts": copy.parent})
    repository = loaded(wanted)
    assert [model.name for model in repository] == ["resnet20", "second"]
    assert repository.get(None).name == "resnet20"
    assert repository.get("second").name == "second"
    with pytest.raises(UnknownModel, match="no model named 'third'") as refused:
        repository.get("third")
    assert refused.value.hint == "Loaded: resnet20, second."
    repository.close()


def test_two_of_one_name_are_refused(artifact: Path, copy: Path, settings: Settings) -> None:
    wanted = settings.model_copy(update={"model": (str(artifact), str(copy))})
    with pytest.raises(LoadError, match="a model named 'resnet20' is loaded already"):
        loaded(wanted)


def test_an_unknown_artifact_is_refused_with_what_there_is(copy: Path) -> None:
    with pytest.raises(ArtifactNotFound, match=r"--model nix: .* there is: embedded, copy"):
        find_artifact("nix", copy.parent)


# Leases


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> Queue[OnnxRuntimeEngine]:
    """Engines that have been closed, as they are."""
    queue: Queue[OnnxRuntimeEngine] = Queue()
    close = OnnxRuntimeEngine.close

    def note(engine: OnnxRuntimeEngine) -> None:
        close(engine)
        queue.put(engine)

    monkeypatch.setattr(OnnxRuntimeEngine, "close", note)
    return queue


def engines_of(model: LoadedModel) -> set[Engine]:
    return {engine for graph in model.graphs.values() for engine in graph.engines}


def answers(model: LoadedModel) -> bool:
    pixels = np.asarray(Image.open(model.directory / model.manifest.golden_image))
    [future] = model.classify.submit([{"images": pixels}])
    return future.result(60).outputs["logits"].shape == (10,)


@pytest.mark.parametrize("swapped", [True, False])
def test_a_leased_model_stays_open_until_the_last_one_gives_it_back(
    copy: Path, settings: Settings, closed: Queue[OnnxRuntimeEngine], swapped: bool
) -> None:
    repository = loaded(settings.model_copy(update={"model": (str(copy),)}))
    with repository.lease(None) as model:
        with suppress(KeyError), repository.lease("resnet20") as again:
            assert again is model
            if swapped:
                repository.put(repository.load(copy))
            else:
                repository.remove("resnet20")
            raise KeyError("which ends that lease")
        assert answers(model)
        assert closed.empty()
    assert {closed.get(timeout=60) for _ in engines_of(model)} == engines_of(model)
    if swapped:
        assert repository.get(None) is not model
        assert answers(repository.get(None))
    else:
        with pytest.raises(NotReady, match="No model is loaded"), repository.lease(None):
            pass
    repository.close()


def test_what_nobody_has_is_closed_at_once(
    copy: Path, settings: Settings, closed: Queue[OnnxRuntimeEngine]
) -> None:
    repository = loaded(settings.model_copy(update={"model": (str(copy),)}))
    model = repository.get(None)
    repository.remove("resnet20")
    assert {closed.get(timeout=60) for _ in engines_of(model)} == engines_of(model)
    repository.close()


def test_what_is_queued_at_a_swap_is_answered(copy: Path, settings: Settings) -> None:
    repository = loaded(settings.model_copy(update={"model": (str(copy),)}))
    old = repository.get(None)
    pixels = np.asarray(Image.open(copy / old.manifest.golden_image))
    futures = old.classify.submit([{"images": pixels}] * 50)
    repository.put(repository.load(copy))
    assert all(future.result(60).outputs["logits"].shape == (10,) for future in futures)
    repository.close()


def test_a_graph_that_the_new_version_lacks_is_no_longer_told(copy: Path, settings: Settings) -> None:
    metrics = Metrics()
    repository = Repository(settings.model_copy(update={"model": (str(copy),)}), metrics)
    repository.load_configured()
    assert {each["graph"] for each in info(metrics)} == {"classify", "introspect", "attribute"}
    change_manifest(copy, lambda manifest: manifest.update(graphs=manifest["graphs"][:1]))
    repository.put(repository.load(copy))
    assert [each["graph"] for each in info(metrics)] == ["classify"]
    repository.close()


def test_the_end_closes_what_is_leased_too(
    copy: Path, settings: Settings, closed: Queue[OnnxRuntimeEngine]
) -> None:
    repository = loaded(settings.model_copy(update={"model": (str(copy),)}))
    with repository.lease(None) as model:
        repository.remove("resnet20")
        repository.close(60)
        assert closed.qsize() == len(engines_of(model))
    for thread in repository._closing:
        thread.join(60)
    assert closed.qsize() == len(engines_of(model))  # and once only


def test_whatever_goes_wrong_while_loading_is_a_refusal(
    copy: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would else end the watch, or be a 500."""
    repository = loaded(settings.model_copy(update={"model": (str(copy),)}))

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("what nobody foresaw")

    monkeypatch.setattr("service.runtime.repository.load_model", fail)
    with pytest.raises(LoadRefused, match="what nobody foresaw"):
        repository.load(copy)
    assert answers(repository.get(None))
    repository.close()


def test_an_artifact_that_was_changed_is_no_longer_current(copy: Path, settings: Settings) -> None:
    repository = loaded(settings.model_copy(update={"model": (str(copy),)}))
    assert repository.is_current(copy)
    assert not repository.is_current(copy.parent)
    change_manifest(copy, lambda manifest: manifest.update(version="2"))
    assert not repository.is_current(copy)
    repository.put(repository.load(copy))
    assert repository.is_current(copy)
    (copy / "manifest.json").write_text("{")
    assert not repository.is_current(copy)
    repository.close()


# Damage


def test_a_model_has_one_directory(artifact: Path, copy: Path, settings: Settings) -> None:
    """Or two of them would take turns under --watch; but one that is gone is no obstacle."""
    repository = loaded(settings.model_copy(update={"model": (str(copy),)}))
    other = copy.with_name("other")
    shutil.copytree(copy, other)
    with pytest.raises(LoadRefused, match=r"'resnet20' is loaded from .*copy"):
        repository.load(other)
    shutil.rmtree(copy)
    model = repository.load(other)
    repository.put(model)
    assert repository.get("resnet20").directory == other
    repository.close()


def test_a_directory_that_is_gone_hides_none_that_is_there(copy: Path, settings: Settings) -> None:
    wanted = settings.model_copy(update={"model": ("copy",), "artifacts": copy.parent})
    repository = loaded(wanted)
    repository.remove("resnet20")
    moved = copy.rename(copy.with_name("moved"))
    assert repository.locate("resnet20") == moved
    repository.close()


def name_with_nul(directory: Path) -> None:
    change_manifest(directory, lambda manifest: manifest.update(golden_image="a\0b"))


def loop_of_links(directory: Path) -> None:
    (directory / "loop").symlink_to(directory / "loop")
    change_manifest(directory, lambda manifest: manifest.update(golden_image="loop/golden.png"))


def endless_name(directory: Path) -> None:
    change_manifest(directory, lambda manifest: manifest.update(golden_image="x" * 5000))


@pytest.mark.parametrize("spoil", [name_with_nul, loop_of_links, endless_name])
def test_an_odd_artifact_among_the_others_is_no_obstacle(
    artifact: Path, copy: Path, settings: Settings, spoil: Callable[[Path], None]
) -> None:
    spoil(copy)
    with pytest.raises(ManifestError):
        read_manifest(copy, verify=False)
    wanted = settings.model_copy(update={"model": (str(artifact),), "artifacts": copy.parent})
    repository = loaded(wanted)
    assert "resnet20" in repository.known()
    assert not repository.is_current(copy)
    repository.close()


def flip_a_byte(directory: Path) -> None:
    path = directory / read_manifest(directory).graphs[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_no_graph(directory: Path) -> None:
    file = read_manifest(directory).graphs[0].file
    (directory / file).write_bytes(b"no graph")
    digest = sha256_of(directory / file)
    change_manifest(directory, lambda manifest: manifest["graphs"][0].update(sha256=digest))


def change_golden(directory: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["graphs"][1]["golden_logits"][3] += 1.0

    change_manifest(directory, change)


def drop_golden(directory: Path) -> None:
    change_manifest(directory, lambda manifest: manifest["graphs"][0]["golden_logits"].pop())


def shrink_golden_image(directory: Path) -> None:
    Image.new("RGB", (31, 31)).save(directory / read_manifest(directory).golden_image)


def spoil_golden_image(directory: Path) -> None:
    (directory / read_manifest(directory).golden_image).write_bytes(b"no image")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "manifest.json").unlink(), "no artifact at"),
        (lambda path: (path / "manifest.json").write_text("{}"), "is not a manifest of format 1"),
        (lambda path: (path / read_manifest(path).graphs[0].file).unlink(), "lacks the file"),
        (lambda path: change_manifest(path, lambda m: m["labels"].pop()), "labels or golden logits differ"),
        (lambda path: change_manifest(path, lambda m: m["graphs"].pop(0)), "no classify graph"),
        (flip_a_byte, "differs from the SHA-256 in its manifest"),
        (make_no_graph, "ONNX Runtime cannot open"),
        (change_golden, r"the golden logits differ by 1(\.|,|$)"),
        (drop_golden, "labels or golden logits differ"),
        (shrink_golden_image, "is not 32 x 32"),
        (spoil_golden_image, "the golden image of .* cannot be read"),
    ],
)
def test_a_damaged_artifact_is_refused(
    copy: Path, settings: Settings, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(LoadError, match=message):
        load_model(copy, settings)
