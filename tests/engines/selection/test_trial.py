"""One candidate is checked and timed as designed: by a clock that the engine itself moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from artifact.manifest import Graph, read_manifest
from engines.engine import EngineError, EngineOptions
from engines.golden import golden_row
from engines.selection.candidates import Candidate
from engines.selection.source import Source
from engines.selection.trial import EngineTrial, best_count, try_candidate
from engines.settings import EngineSettings

ALONE_MS = 3.0
LOADED_MS = {1: 16.0, 2: 24.0, 4: 64.0}  # a batch of 8 in each instance: 2, 1.5 and 2 ms an image


class Stage:
    """Engines that need given times, as a clock tells that goes on only while they run."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.logits = np.asarray(graph.golden_logits, np.float32)
        self.now = 0.0
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.runs: list[tuple[int, int]] = []  # instances, batch size
        self.wrong: Callable[[int, int], bool] = lambda instances, run: False
        self.cannot: tuple[int, ...] = ()
        self.slow_down = 1.0
        self._lock = Lock()

    def open_engine(self, _name: str, _path: Path, _precision: str, options: EngineOptions) -> Any:
        if options.instances in self.cannot:
            raise EngineError(f"no memory for {options.instances}")
        self.opened.append(options.instances)
        return SimpleNamespace(
            run=lambda inputs: self.run(options.instances, len(inputs["images"])),
            close=lambda: self.closed.append(options.instances),
        )

    def run(self, instances: int, size: int) -> Mapping[str, np.ndarray]:
        with self._lock:
            ms = ALONE_MS if size == 1 else LOADED_MS[instances] / instances
            self.now += self.slow_down * ms / 1000
            self.runs.append((instances, size))
            number = sum(run[0] == instances for run in self.runs)
        return {"logits": np.tile(self.logits * (2 if self.wrong(instances, number) else 1), (size, 1))}

    def clock(self) -> float:
        return self.now


@pytest.fixture
def stage(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage(read_manifest(artifact).graphs[0])
    monkeypatch.setattr("engines.selection.trial.open_engine", made.open_engine)
    monkeypatch.setattr(
        "engines.selection.trial.time", SimpleNamespace(perf_counter=made.clock, monotonic=made.clock)
    )
    return made


def source_of(artifact: Path) -> Source[EngineSettings]:
    manifest = read_manifest(artifact)
    return Source(artifact, manifest, "classify", golden_row(artifact, manifest), EngineSettings())


def tried(artifact: Path, stage: Stage, counts: tuple[int, ...], device: Any = "cpu") -> EngineTrial:
    options = EngineOptions(device, threads=4, batch_sizes=(1, 2, 4, 8))
    candidate = Candidate(stage.graph, "onnxruntime", device, device)
    trial = try_candidate(candidate, source_of(artifact), options, counts)
    assert stage.closed[::-1] == stage.opened
    return trial


def test_alone_on_all_threads_and_at_load_by_instances(artifact: Path, stage: Stage) -> None:
    trial = tried(artifact, stage, (1, 2, 4))
    assert trial.batch_ms == pytest.approx({1: 3, 8: 16})
    assert trial.loaded_ms == pytest.approx({1: 2, 2: 1.5, 4: 2})
    assert (trial.instances, trial.problem) == (2, None)
    assert trial.score_ms == pytest.approx((3 * 1.5) ** 0.5)
    assert trial.golden_error == 0
    assert {instances for instances, size in stage.runs if size == 1} == {1}


def test_the_numbers_of_instances_take_turns(artifact: Path, stage: Stage) -> None:
    """After the first round of each, which counts nothing."""
    tried(artifact, stage, (1, 2))
    at_load = [instances for instances, size in stage.runs if size == 8]
    assert at_load[:9] == [1, 2, 2, 1, 2, 2, 1, 2, 2]


def test_a_single_number_is_timed_alone_too(artifact: Path, stage: Stage) -> None:
    trial = tried(artifact, stage, (2,))
    assert (trial.batch_ms, trial.loaded_ms) == (pytest.approx({1: 3}), pytest.approx({2: 1.5}))
    assert (trial.instances, trial.score_ms) == (2, pytest.approx((3 * 1.5) ** 0.5))


@pytest.mark.parametrize(
    ("loaded_ms", "expected"),
    [
        ({1: 2.0, 2: 2.2}, 1),
        ({1: 2.0, 2: 2.05}, 2),
        ({1: 2.0, 2: 1.8}, 2),
        ({1: 2.0, 2: 2.5, 4: 1.5, 8: 1.49}, 4),
        ({1: 2.0}, 1),
        ({3: 2.0}, 3),
    ],
)
def test_of_equally_good_numbers_of_instances_the_least_above_one(
    loaded_ms: dict[int, float], expected: int
) -> None:
    assert best_count(loaded_ms) == expected


def test_a_wrong_answer_of_one_instance_of_several_is_seen(
    artifact: Path, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The second run of the two that are under way at once; one instance alone is right, and chosen."""
    stage.wrong = lambda instances, run: (instances, run) == (2, 2)
    trial = tried(artifact, stage, (1, 2))
    assert (trial.instances, list(trial.loaded_ms), trial.problem) == (1, [1], None)
    assert "onnxruntime on cpu, 2 instances: left out: " in caplog.text
    assert "at batch size 8: the golden logits differ" in caplog.text


def test_a_number_that_cannot_be_had_is_left_out(
    artifact: Path, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    stage.cannot = (2,)
    trial = tried(artifact, stage, (1, 2, 4))
    assert (trial.instances, list(trial.loaded_ms), trial.problem) == (4, [1, 4], None)
    assert "2 instances: left out: no memory for 2" in caplog.text


def test_the_first_number_must_be_right(artifact: Path, stage: Stage) -> None:
    stage.cannot = (1,)
    trial = tried(artifact, stage, (1, 2))
    assert (trial.problem, trial.score_ms, stage.opened) == ("no memory for 1", None, [])
    stage.cannot = ()
    stage.wrong = lambda instances, run: True
    trial = tried(artifact, stage, (1, 2))
    assert "at batch size 1: the golden logits differ" in (trial.problem or "")
    assert stage.opened == [1]


def test_slow_is_timed_once_on_a_cpu(artifact: Path, stage: Stage) -> None:
    """A second and more for the first run: that is the measurement. A GPU's first run says nothing."""
    stage.slow_down = 400
    trial = tried(artifact, stage, (1, 2))
    assert trial.loaded_ms == pytest.approx({1: 800, 2: 600})
    assert stage.runs == [(1, 1), (1, 8), (2, 8), (2, 8)]
    stage.runs.clear()
    stage.closed.clear()
    stage.opened.clear()
    tried(artifact, stage, (1, 2), "cuda")
    assert stage.runs == [(1, 1)] * 2 + [(1, 8), (2, 8), (2, 8)] * 2


def test_real_engines_at_once(artifact: Path) -> None:
    """Without the stage: both engines, three numbers of instances, none of which is wrong."""
    source = source_of(artifact)
    options = EngineOptions("cpu", threads=2, batch_sizes=(1, 2))
    for name in ("onnxruntime", "openvino"):
        candidate = Candidate(source.manifest.graphs[0], name, "cpu", "cpu")  # type: ignore[arg-type]
        trial = try_candidate(candidate, source, replace(options), (1, 2, 3))
        assert (trial.problem, list(trial.loaded_ms)) == (None, [1, 2, 3])
        assert min(trial.loaded_ms.values()) > 0
