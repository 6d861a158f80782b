"""An engine is one row of the table: everything else that knows of engines follows from it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from artifact.manifest import Manifest, Precision, read_manifest
from engines.engine import EngineOptions
from engines.golden import golden_batch, golden_row
from engines.registry import BASELINE, ENGINES, EngineRow, engines_for, modes
from engines.selection.candidates import NothingRuns, candidates
from engines.selection.choice import choose
from engines.selection.source import Source
from service.runtime.loading import load_model
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
# The rest of what a new engine takes: its module, and an extra in pyproject.toml.
TOY = '''
"""The reference implementation of ONNX as an engine: numpy, node by node."""

from engines.engine import EngineInfo
from engines.instances import Instances
from onnx.reference import ReferenceEvaluator


class ToyEngine:
    def __init__(self, graph, precision, options):
        self._graphs = Instances([ReferenceEvaluator(str(graph)) for _ in range(options.instances)])
        self.info = EngineInfo("toy", "1.0", "cpu", options.instances, "cpu", options.instances)

    def run(self, inputs):
        with self._graphs.lent() as graph:
            return dict(zip(graph.output_names, graph.run(None, dict(inputs)), strict=True))

    def close(self):
        del self._graphs
'''
ROW = """EngineRow(
    name="toy",
    module="toy_engine",
    factory="ToyEngine",
    distributions=("onnx",),
    install=".[toy]",
    cpu=("fp32",),
    modes={"cpu": {"fp32": ("cpu",)}},
)"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineRow:
    """A further engine."""
    (tmp_path / "toy_engine.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    row: EngineRow = eval(ROW)
    monkeypatch.setitem(ENGINES, "toy", row)
    return row


def settings_for(tmp_path: Path, engine: str = "auto") -> Settings:
    """The settings were made before the toy's row, so that they refuse its name when they are read."""
    settings = Settings(
        device="cpu", threads=1, max_batch_size=1, precision="fp32", engine_cache=tmp_path / "cache"
    )
    return settings.model_copy(update={"engine": engine})


def source_of(directory: Path, settings: Settings) -> Source[Settings]:
    manifest = read_manifest(directory)
    return Source(directory, manifest, "classify", golden_row(directory, manifest), settings)


def test_a_new_engine_is_tried_beside_the_others(artifact: Path, tmp_path: Path, toy: EngineRow) -> None:
    source = source_of(artifact, settings_for(tmp_path))
    choice = choose(source)
    trials = {trial.engine: trial for trial in choice.trials}
    assert list(trials) == ["onnxruntime", "openvino", "toy"]
    assert trials["toy"].problem is None
    assert trials["toy"].score_ms is not None
    assert choose(source).remembered


def test_a_new_engine_serves(artifact: Path, tmp_path: Path, toy: EngineRow) -> None:
    """Without the other graphs, in which it takes a second an image."""
    directory = Path(shutil.copytree(artifact, tmp_path / "toy"))
    manifest = read_manifest(directory)
    manifest.model_copy(update={"graphs": manifest.graphs[:1]}).write(directory)
    model = load_model(directory, settings_for(tmp_path, "toy"))
    try:
        assert model.engine.name == "toy"
        graph = model.graphs["classify"].graph
        batch = golden_batch(golden_row(artifact, model.manifest), graph, 1)
        answer = model.classify.submit([{name: array[0] for name, array in batch.items()}])
        np.testing.assert_allclose(
            answer[0].result(60).outputs["logits"], graph.golden_logits, atol=graph.golden_tolerance
        )
    finally:
        model.close()


def test_the_command_line_offers_a_new_engine(tmp_path: Path) -> None:
    """In a process of its own, because the choices of a setting are read when its class is made."""
    (tmp_path / "toy_engine.py").write_text(TOY, encoding="utf-8")
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from engines.registry import BASELINE, ENGINES, EngineRow
        ENGINES["toy"] = {ROW.replace(chr(10), "")}
        from residuum.cli.main import main
        sys.exit(main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        [*command, "serve", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "{auto,onnxruntime,openvino,torch,toy}" in done.stdout) == (0, True), done.stderr


def test_settings_are_read_without_numpy() -> None:
    """`--help` lists the engines; it takes a third of the time without numpy."""
    code = "import sys, service.settings; print(sorted({'numpy', 'onnxruntime', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_which_engines_run_a_precision() -> None:
    assert {precision: engines_for(precision) for precision in get_args(Precision)} == {
        "fp32": ("onnxruntime", "openvino", "torch"),
        "bf16": ("openvino", "torch"),
        "fp16": ("onnxruntime", "openvino", "torch"),
        "int8": ("onnxruntime", "openvino"),
        "int8-trt": ("onnxruntime",),
    }


@pytest.mark.parametrize("name", ENGINES)
def test_a_precision_that_the_row_lacks_is_not_tried(
    name: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without importing the engine, whose own refusal says what to use instead."""
    row = ENGINES[name]
    monkeypatch.setitem(sys.modules, row.module, None)
    for precision in get_args(Precision):
        for device in ("cpu", "cuda"):
            if precision not in row.precisions(device):
                assert modes(name, precision, EngineOptions(device)) == ()


def test_what_an_older_manifest_says_of_engines_is_ignored(artifact: Path, tmp_path: Path) -> None:
    text = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    assert not any("engines" in graph for graph in text["graphs"])
    for graph in text["graphs"]:
        graph["engines"] = ["onnxruntime", "one-that-is-gone"]
    older = Manifest.model_validate(text)
    found = candidates(older, "classify", settings_for(tmp_path))
    assert [candidate.engine for candidate in found] == ["onnxruntime", "openvino"]
    older.write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8")) == json.loads(
        (artifact / "manifest.json").read_text(encoding="utf-8")
    )
    with pytest.raises(NothingRuns, match=r"there is: fp32 \(onnxruntime, openvino, torch\)"):
        candidates(older, "classify", settings_for(tmp_path, "one-that-is-gone"))


def test_every_row_can_be_installed() -> None:
    assert ENGINES[BASELINE].install == "."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for row in ENGINES.values():
        extra = re.fullmatch(r"\.(?:\[(\w+)\])?", row.install)
        assert extra is not None
        wanted = project["optional-dependencies"][extra[1]] if extra[1] else project["dependencies"]
        names = {re.split(r"[^\w-]", requirement)[0] for requirement in wanted}
        assert names & set(row.distributions), row.name


def test_the_docs_have_the_rows() -> None:
    """The first table of docs/engines.md: name, devices, precisions, and what installs it."""
    lines = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("| engine | devices and modes | precisions | installed by |")
    cells: dict[str, Any] = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *others = (cell.strip() for cell in line.strip("|").split("|"))
        cells[name.strip("`")] = others
    assert list(cells) == list(ENGINES)
    for name, (devices, precisions, install) in cells.items():
        row = ENGINES[name]
        assert ("cuda" in devices.lower()) == bool(row.cuda)
        found = re.findall(r"fp32|bf16|fp16|int8(?:-trt)?", precisions)
        assert set(found) == set(row.precisions("auto"))
        assert row.install == "." or f"`{row.install}`" in install


def test_the_rows_name_what_the_modules_have() -> None:
    for row in ENGINES.values():
        module = pytest.importorskip(row.module)
        assert hasattr(module, row.factory)
        assert row.modes is not None or callable(module.modes)
