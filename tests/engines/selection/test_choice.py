"""`auto` is measured: the fastest that is right wins, and what is wrong or cannot run is named with why.

What is timed, and with how many instances, is tested in test_trial.py.
"""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from artifact.manifest import Graph, Manifest, read_manifest, sha256_of
from engines.golden import golden_batch, golden_row
from engines.machine import cpu_features
from engines.selection.candidates import Candidate, NothingRuns, candidates, engine_options
from engines.selection.choice import Choice, choose, next_best, try_graph
from engines.selection.source import Source
from engines.selection.trial import EngineTrial, trial_of
from service.runtime.loading import load_model
from service.runtime.opening import LoadError
from service.settings import Settings

SOUND = 0.05  # a right kernel is that close to exact emulation, as a part of the logits; measured 0.01


class Noise(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = list(np.random.default_rng(0).integers(0, 256, (2, 8, 32, 32, 3), np.uint8))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"images": self._left.pop()} if self._left else None


@pytest.fixture(scope="module")
def several(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random artifact with an int8 classify graph, for all engines.

    Its weights are all alike and use the whole range, so that its activations are high: sums of two products
    do not fit into 16 bits.
    """
    out = Path(shutil.copytree(artifact, tmp_path_factory.mktemp("several") / "resnet20"))
    manifest = read_manifest(out)
    fp32 = manifest.graph("classify")
    assert fp32 is not None
    model = onnx.load(out / fp32.file)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.ndim == 4:
            weight.CopyFrom(numpy_helper.from_array(np.full_like(values, 1 / values[0].size), weight.name))
    quantize_static(
        model,
        out / "classify.int8.onnx",
        Noise(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    int8 = emulated(fp32, out, "classify.int8.onnx")
    rewrite(manifest, out, [*manifest.graphs, int8])
    return out


def emulated(graph: Graph, directory: Path, file: str) -> Graph:
    """The int8 graph in that file, with the golden logits that exact emulation gives: Q and DQ in float."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(directory / file, options, providers=["CPUExecutionProvider"])
    row = golden_row(directory, read_manifest(directory))
    (logits_1K,) = session.run(["logits"], golden_batch(row, graph, 1))
    return graph.model_copy(
        update={
            "precision": "int8",
            "file": file,
            "sha256": sha256_of(directory / file),
            "golden_logits": tuple(map(float, logits_1K[0])),
            "golden_tolerance": SOUND * float(np.abs(logits_1K).max()),
        }
    )


def rewrite(manifest: Manifest, directory: Path, graphs: list[Graph]) -> Manifest:
    changed = manifest.model_copy(update={"graphs": tuple(graphs)})
    changed.write(directory)
    return changed


def settings_for(tmp_path: Path, **given: Any) -> Settings:
    return Settings(
        **{"device": "cpu", "threads": 2, "max_batch_size": 2, "engine_cache": tmp_path / "cache", **given}
    )


def source_of(directory: Path, settings: Settings, kind: Any = "classify") -> Source[Settings]:
    manifest = read_manifest(directory)
    return Source(directory, manifest, kind, golden_row(directory, manifest), settings)


def chosen(directory: Path, settings: Settings, kind: Any = "classify", **options: Any) -> Choice:
    return choose(source_of(directory, settings, kind), **options)


def words(found: list[Candidate]) -> list[str]:
    return [str(candidate) for candidate in found]


def test_candidates_are_what_this_machine_should_try(several: Path, tmp_path: Path) -> None:
    manifest = read_manifest(several)
    assert words(candidates(manifest, "classify", settings_for(tmp_path))) == [
        "fp32 onnxruntime on cpu",
        "fp32 openvino on cpu",
        "int8 onnxruntime on cpu",
        "int8 openvino on cpu",
    ]
    assert words(candidates(manifest, "introspect", settings_for(tmp_path, precision="int8"))) == [
        "fp32 onnxruntime on cpu",
        "fp32 openvino on cpu",
    ]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"engine": "onnxruntime", "precision": "int8"}, ["int8 onnxruntime on cpu"]),
        ({"engine": "openvino", "precision": "fp32"}, ["fp32 openvino on cpu"]),
        ({"engine": "torch", "precision": "fp32"}, ["fp32 torch eager on cpu"]),
        ({"engine": "openvino", "device": "cuda", "precision": "fp32"}, ["fp32 openvino on cuda"]),
    ],
)
def test_settings_narrow_the_candidates(
    several: Path, tmp_path: Path, given: dict[str, Any], expected: list[str]
) -> None:
    assert words(candidates(read_manifest(several), "classify", settings_for(tmp_path, **given))) == expected


def test_half_precision_without_the_hardware_is_tried_only_when_asked_for(
    several: Path, tmp_path: Path
) -> None:
    """fp16 cannot win on a CPU that has no arithmetic for it."""
    manifest = read_manifest(several)
    fp32 = manifest.graph("classify")
    assert fp32 is not None
    half = fp32.model_copy(update={"precision": "fp16"})
    manifest = manifest.model_copy(update={"graphs": (*manifest.graphs, half)})
    found = candidates(manifest, "classify", settings_for(tmp_path))
    assert "fp16" not in {candidate.graph.precision for candidate in found}
    asked = candidates(manifest, "classify", settings_for(tmp_path, precision="fp16"))
    assert words(asked) == ["fp16 onnxruntime on cpu", "fp16 openvino on cpu"]


def test_what_the_artifact_lacks_is_said(several: Path, tmp_path: Path) -> None:
    with pytest.raises(
        NothingRuns, match=r"no classify graph of precision bf16 for engine auto; there is: fp32 \(onnx"
    ):
        candidates(read_manifest(several), "classify", settings_for(tmp_path, precision="bf16"))
    with pytest.raises(LoadError, match="no classify graph of precision int8 for engine torch"):
        load_model(several, settings_for(tmp_path, precision="int8", engine="torch"))


def test_the_fastest_that_is_right_wins(several: Path, tmp_path: Path) -> None:
    choice = chosen(several, settings_for(tmp_path))
    right = [trial for trial in choice.trials if trial.score_ms is not None]
    assert len(choice.trials) == 4
    assert [trial for trial in choice.trials if trial.chosen] == [min(right, key=lambda t: t.score_ms or 0)]
    for trial in right:
        assert (list(trial.batch_ms), list(trial.loaded_ms)) == ([1, 2], [1, 2])
        assert trial.score_ms == pytest.approx((trial.batch_ms[1] * trial.loaded_ms[trial.instances]) ** 0.5)
        assert trial.problem is None
    for trial in choice.trials:
        if trial.score_ms is None:
            assert "golden logits differ" in (trial.problem or "")


def test_int8_kernels_that_saturate_are_found_out(several: Path, tmp_path: Path) -> None:
    """The real thing where the processor has no VNNI: full-range weights overflow 16-bit sums there."""
    if not cpu_features() or any("vnni" in f or f in ("asimddp", "i8mm") for f in cpu_features()):
        pytest.skip("this processor adds int8 products in 32 bits")
    choice = chosen(several, settings_for(tmp_path, engine="onnxruntime"))
    assert choice.candidate.graph.precision == "fp32"
    [int8] = [trial for trial in choice.trials if trial.precision == "int8"]
    assert "the golden logits differ by" in (int8.problem or "")
    with pytest.raises(LoadError, match="the golden logits differ by"):
        load_model(several, settings_for(tmp_path, precision="int8"))


def test_int8_that_answers_otherwise_than_its_artifact_says_falls_back(several: Path, tmp_path: Path) -> None:
    """The same on every processor: the int8 file's own logits are none that a kernel gives."""
    directory = Path(shutil.copytree(several, tmp_path / "wrong"))
    manifest = read_manifest(directory)
    *graphs, int8 = manifest.graphs
    wrong = int8.model_copy(update={"golden_logits": tuple(2 * v for v in int8.golden_logits)})
    rewrite(manifest, directory, [*graphs, wrong])
    model = load_model(directory, settings_for(tmp_path))
    assert model.precision == "fp32"
    trials = model.graphs["classify"].trials
    problems = {trial.precision: trial.problem for trial in trials if not trial.chosen}
    assert "classify.int8.onnx at batch size 1: the golden logits differ by" in (problems["int8"] or "")
    model.close()


def test_when_nothing_is_right_every_reason_is_given(several: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(several, tmp_path / "broken"))
    manifest = read_manifest(directory)
    graphs = [g.model_copy(update={"golden_logits": (1e9,) * len(g.golden_logits)}) for g in manifest.graphs]
    rewrite(manifest, directory, graphs)
    with pytest.raises(NothingRuns, match=r"fp32\.onnx at batch size 1: .*int8\.onnx at batch size 1: "):
        chosen(directory, settings_for(tmp_path))


@pytest.mark.parametrize(
    ("given", "instances"), [({"threads": 1}, 1), ({"instances": 1}, 1), ({"instances": 3}, 3)]
)
def test_what_is_without_alternative_is_not_timed(
    several: Path, tmp_path: Path, given: dict[str, Any], instances: int
) -> None:
    choice = chosen(several, settings_for(tmp_path, engine="onnxruntime", **given), "introspect")
    [trial] = choice.trials
    assert (choice.instances, trial.instances) == (instances, instances)
    assert (trial.chosen, trial.batch_ms, trial.loaded_ms, trial.score_ms) == (True, {}, {}, None)
    assert not (tmp_path / "cache").exists()


def test_a_sole_candidate_is_timed_for_its_instances_and_remembered(several: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, engine="onnxruntime")
    choice = chosen(several, settings, "introspect")
    [trial] = choice.trials
    assert list(trial.loaded_ms) == [1, 2]
    again = chosen(several, settings, "introspect")
    assert (again.remembered, again.instances, again.trials) == (True, choice.instances, choice.trials)


Measured = dict[tuple[str, str], tuple[float, dict[int, float]]]  # (precision, engine) -> alone, at load


def measure_as(monkeypatch: pytest.MonkeyPatch, measured: Measured) -> list[tuple[str, tuple[int, ...]]]:
    """Trials come out as told: no timing of this machine decides. Returns what is tried, as it is."""
    tried = []

    def stub(candidate: Candidate, _source: Any, _options: Any, counts: Any) -> EngineTrial:
        tried.append((str(candidate), tuple(counts)))
        alone, loaded = measured[candidate.graph.precision, candidate.engine]
        loaded = {count: loaded[count] for count in counts}
        best = min(loaded, key=lambda count: loaded[count])
        score = (alone * loaded[best]) ** 0.5
        return trial_of(candidate, instances=best, batch_ms={1: alone}, loaded_ms=loaded, score_ms=score)

    monkeypatch.setattr("engines.selection.choice.try_candidate", stub)
    return tried


FOUR: Measured = {
    ("fp32", "onnxruntime"): (4, {1: 4, 2: 4}),
    ("fp32", "openvino"): (4, {1: 4, 2: 2}),
    ("int8", "onnxruntime"): (2, {1: 2, 2: 1.5}),  # the least, by its two instances
    ("int8", "openvino"): (1.9, {1: 1.9, 2: 1.8}),
}


def test_the_winner_brings_its_number_of_instances(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tried = measure_as(monkeypatch, FOUR)
    settings = settings_for(tmp_path)
    choice = chosen(several, settings)
    assert (str(choice.candidate), choice.instances) == ("int8 onnxruntime on cpu", 2)
    assert [counts for _, counts in tried] == [(1, 2)] * 4
    assert "int8 onnxruntime on cpu: 2.00 ms alone, at load 2.00 ms in 1, 1.50 ms in 2, chosen" in caplog.text
    again = chosen(several, settings)
    assert (again.remembered, again.instances, len(tried)) == (True, 2, 4)
    other = next_best(source_of(several, settings), choice, "it failed")
    assert (str(other.candidate), other.instances) == ("int8 openvino on cpu", 2)
    assert {trial.problem for trial in other.trials} == {None, "it failed"}


def test_a_set_number_of_instances_is_the_only_one_tried(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = measure_as(monkeypatch, FOUR)
    choice = chosen(several, settings_for(tmp_path, instances=1))
    assert (str(choice.candidate), choice.instances) == ("int8 openvino on cpu", 1)
    assert [counts for _, counts in tried] == [(1,)] * 4
    assert chosen(several, settings_for(tmp_path, instances=2)).instances == 2  # not what was remembered
    assert [counts for _, counts in tried[4:]] == [(2,)] * 4


def test_workers_share_the_cores(several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its part of the threads, and what one of two found is not what one alone would."""
    monkeypatch.setattr("engines.machine.num_cores", lambda: 4)
    tried = measure_as(monkeypatch, {key: (1, {1: 1, 2: 1, 4: 1}) for key in FOUR})
    options = {"threads": 0, "engine": "onnxruntime", "precision": "fp32"}
    for workers, threads, counts in ((1, 4, (1, 4)), (2, 2, (1, 2))):
        settings = settings_for(tmp_path, workers=workers, **options)
        assert engine_options(settings, "cpu").threads == threads
        assert not chosen(several, settings).remembered
        assert tried[-1] == ("fp32 onnxruntime on cpu", counts)
    assert chosen(several, settings_for(tmp_path, workers=4, **options)).instances == 1
    assert len(tried) == 2  # one thread leaves nothing to try


@pytest.fixture
def narrow(tmp_path: Path) -> Settings:
    """Two candidates."""
    return settings_for(tmp_path, precision="fp32", threads=1)


def cache_file(tmp_path: Path) -> Path:
    [file] = (tmp_path / "cache").glob("*/engines.json")
    return file


def test_a_choice_is_remembered_for_the_same_machine(several: Path, tmp_path: Path, narrow: Settings) -> None:
    first = chosen(several, narrow)
    again = chosen(several, narrow)
    assert (first.remembered, again.remembered) == (False, True)
    assert (again.candidate, again.trials) == (first.candidate, first.trials)
    assert not chosen(several, narrow, remember=False).remembered
    assert not chosen(several, narrow.model_copy(update={"max_batch_size": 1})).remembered
    assert chosen(several, narrow).remembered  # the other entry did not push it out
    file = cache_file(tmp_path)
    stored = json.loads(file.read_text(encoding="utf-8"))
    for entry in stored["entries"]:
        entry["key"]["cpu"] = "another processor"
    file.write_text(json.dumps(stored), encoding="utf-8")
    assert not chosen(several, narrow).remembered


@pytest.mark.parametrize("content", [b"", b"{", b'{"entries": [{}]}', b"\xff\x00"])
def test_a_broken_file_is_measured_anew_and_mended(
    several: Path, tmp_path: Path, narrow: Settings, content: bytes
) -> None:
    chosen(several, narrow)
    cache_file(tmp_path).write_bytes(content)
    assert not chosen(several, narrow).remembered
    assert chosen(several, narrow).remembered


def test_a_place_that_cannot_be_written_is_no_error(several: Path, tmp_path: Path, narrow: Settings) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be", encoding="utf-8")
    assert not chosen(several, narrow).remembered
    assert not chosen(several, narrow).remembered


def test_a_remembered_choice_is_checked_and_made_anew(several: Path, tmp_path: Path) -> None:
    """It says that int8 is fastest; its graph no longer answers so."""
    directory = Path(shutil.copytree(several, tmp_path / "changed"))
    settings = settings_for(tmp_path, engine="onnxruntime")
    chosen(directory, settings)
    file = cache_file(tmp_path)
    stored = json.loads(file.read_text(encoding="utf-8"))
    [entry] = stored["entries"]
    for trial in entry["trials"]:
        trial["chosen"] = trial["precision"] == "int8"
    manifest = read_manifest(directory)
    *graphs, int8 = manifest.graphs
    rewrite(
        manifest,
        directory,
        [*graphs, int8.model_copy(update={"golden_logits": tuple(2 * v for v in int8.golden_logits)})],
    )
    file.write_text(json.dumps(stored), encoding="utf-8")
    model = load_model(directory, settings)
    assert (model.precision, model.graphs["classify"].remembered) == ("fp32", False)
    model.close()
    assert chosen(directory, settings).candidate.graph.precision == "fp32"


def wrong_at_two(graph: Graph, directory: Path, file: str) -> Graph:
    """A graph in no time that gives the golden logits, but at batch size 2: trials do not see it."""
    golden = np.asarray([graph.golden_logits], np.float32)
    constants = {"golden": golden, "two": np.int64([2]), "one": np.int64([1])}
    constants["wrong"] = np.float32([1e3])
    nodes = [
        helper.make_node("Shape", ["images"], ["rows"], start=0, end=1),
        helper.make_node("Equal", ["rows", "two"], ["is_two"]),
        helper.make_node("Cast", ["is_two"], ["as_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["as_float", "wrong"], ["error"]),
        helper.make_node("Add", ["golden", "error"], ["answer"]),
        helper.make_node("Concat", ["rows", "one"], ["shape"], axis=0),
        helper.make_node("Expand", ["answer", "shape"], ["logits"]),
    ]
    made = helper.make_graph(
        nodes,
        "wrong at two",
        [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", 32, 32, 3])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", golden.size])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=8), directory / file)
    digest = sha256_of(directory / file)
    return graph.model_copy(update={"precision": "int8", "file": file, "sha256": digest})


def test_a_winner_that_fails_after_its_trial_gives_way_to_the_next_best(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = Path(shutil.copytree(artifact, tmp_path / "late"))
    manifest = read_manifest(directory)
    fp32 = manifest.graph("classify")
    assert fp32 is not None
    late = wrong_at_two(fp32, directory, "late.onnx")
    rewrite(manifest, directory, [*manifest.graphs, late])
    settings = settings_for(tmp_path, engine="onnxruntime", max_batch_size=4)
    elsewhere = settings.model_copy(update={"engine_cache": tmp_path / "elsewhere"})
    assert chosen(directory, elsewhere).candidate.graph.precision == "int8"
    for remembered in (False, True):
        model = load_model(directory, settings)
        graph = model.graphs["classify"]
        assert (graph.precision, graph.remembered) == ("fp32", remembered)
        problems = {trial.precision: trial.problem for trial in graph.trials}
        assert "late.onnx at batch size 2: the golden logits differ" in (problems["int8"] or "")
        model.close()
    assert "int8 onnxruntime on cpu: chosen, but: late.onnx at batch size 2" in caplog.text
    with pytest.raises(LoadError, match=r"late\.onnx at batch size 2"):
        load_model(directory, settings.model_copy(update={"precision": "int8"}))


def test_an_engine_that_does_not_start_is_left_out_unless_asked_for(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "engines.openvino", None)
    manifest = read_manifest(several)
    found = candidates(manifest, "classify", settings_for(tmp_path))
    assert words(found) == ["fp32 onnxruntime on cpu", "int8 onnxruntime on cpu"]
    [record] = caplog.records
    assert "openvino is left out: engine openvino is installed, but does not start" in record.message
    with pytest.raises(LoadError, match="engine openvino is installed, but does not start"):
        load_model(several, settings_for(tmp_path, engine="openvino"))
    graph = manifest.graph("classify")
    assert graph is not None
    source = source_of(several, settings_for(tmp_path))
    trials = {trial.engine: trial for trial in try_graph(source, graph)}
    assert trials["onnxruntime"].score_ms is not None
    assert "does not start" in (trials["openvino"].problem or "")


def test_what_is_kept_can_be_read_by_others_and_leaves_no_rubbish(
    several: Path, tmp_path: Path, narrow: Settings
) -> None:
    chosen(several, narrow)
    file = cache_file(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    file.unlink()
    file.mkdir()
    chosen(several, narrow)
    assert list(file.parent.iterdir()) == [file]


def test_the_cache_is_beside_the_artifact_by_default(several: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(several, tmp_path / "mine"))
    chosen(directory, settings_for(tmp_path, precision="fp32", threads=1, engine_cache=None))
    assert (tmp_path / "mine.cache" / "engines.json").is_file()
    assert sorted(path.name for path in directory.iterdir()) == sorted(p.name for p in several.iterdir())
