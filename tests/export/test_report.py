"""The report of an export: a table, a chart, and an artifact that knows them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from artifact.manifest import Accuracy, Graph, Manifest, Speed, read_manifest
from export.pipeline import ExportError, check_replaceable
from export.report import CHART, HEADINGS, TABLE, fastest, rows, write_report

BYTES = 2**20


def speed(images_per_s: float, engine: str = "onnxruntime", mode: str = "cpu") -> Speed:
    return Speed(engine=engine, mode=mode, machine="a processor", batch=8, images_per_s=images_per_s)


def accuracy(top1: float, agreement: float | None = None) -> Accuracy:
    return Accuracy(dataset="photographs", num_images=2000, top1=top1, top5=0.9, agreement=agreement)


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "copy"))


@pytest.fixture
def manifest(artifact: Path) -> Manifest:
    """Two graphs in fp32, and one that stands for int8 with figures that are easy to divide."""
    found = read_manifest(artifact)
    classify, introspect, _ = found.graphs
    fp32 = classify.model_copy(update={"num_bytes": 4 * BYTES, "accuracy": accuracy(0.5)})
    int8 = classify.model_copy(
        update={
            "precision": "int8",
            "file": "classify.int8.onnx",
            "num_bytes": BYTES,
            "accuracy": accuracy(0.4975, 0.9),
            "verdict": "int8 loses 0.25 point.",
        }
    )
    return found.model_copy(update={"graphs": (fp32, introspect, int8)})


SPEEDS = {
    "classify.fp32.onnx": (speed(1000), speed(800, "torch", "eager")),
    "introspect.fp32.onnx": (),
    "classify.int8.onnx": (speed(1500), speed(2500, "openvino", "latency")),
}


def with_speeds(manifest: Manifest) -> Manifest:
    graphs = tuple(graph.model_copy(update={"speeds": SPEEDS[graph.file]}) for graph in manifest.graphs)
    return manifest.model_copy(update={"graphs": graphs})


def test_rows(manifest: Manifest) -> None:
    table = [dict(zip(HEADINGS, row, strict=True)) for row in rows(with_speeds(manifest))]
    assert all(len(row) == len(HEADINGS) for row in rows(manifest))
    fp32, introspect, int8 = rows(with_speeds(manifest))
    assert fp32 == (
        "classify", "fp32", "4.0", "1.00×", "50.00 %", "", "1,000", "1.00×", "onnxruntime cpu",
    )  # fmt: skip
    assert int8 == (
        "classify", "int8", "1.0", "0.25×", "49.75 %", "90.00 %", "2,500", "2.50×", "openvino latency",
    )  # fmt: skip
    assert introspect[4:] == ("", "", "", "", "")
    assert [row["graph"] for row in table] == ["classify", "introspect", "classify"]


def test_the_fastest(manifest: Manifest) -> None:
    graph: Graph = with_speeds(manifest).graphs[2]
    assert fastest(graph) == speed(2500, "openvino", "latency")
    assert fastest(manifest.graphs[0]) is None


def test_table_and_chart_are_written_and_listed(manifest: Manifest, tmp_path: Path) -> None:
    written = write_report(manifest, SPEEDS, tmp_path)
    assert written.reports == (TABLE, CHART)
    assert {TABLE, CHART} <= set(written.files())
    assert [graph.speeds for graph in written.graphs] == list(SPEEDS.values())
    assert manifest.reports == ()
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0] == f"# resnet20 {manifest.version}"
    assert lines[2] == "| " + " | ".join(HEADINGS) + " |"
    assert lines[4:7] == ["| " + " | ".join(row) + " |" for row in rows(written)]
    assert all(line.count("|") == len(HEADINGS) + 1 for line in lines[2:7])
    assert "Speeds: batches of 8 on a processor; engines that are right there only." in lines
    assert "Accuracy: 2,000 images of photographs, by each file's arithmetic." in lines
    assert "classify: int8 loses 0.25 point." in lines
    assert lines[-1].endswith(f"]({CHART})")
    with Image.open(tmp_path / CHART) as chart:
        assert chart.format == "PNG"
        assert min(chart.size) > 300
        assert len(chart.convert("RGB").getcolors(2**24) or ()) > 10


def test_nothing_measured_is_a_report_too(artifact: Path, tmp_path: Path) -> None:
    found = read_manifest(artifact)
    written = write_report(found, {graph.file: () for graph in found.graphs}, tmp_path)
    text = (tmp_path / TABLE).read_text(encoding="utf-8")
    assert "Speeds" not in text
    assert "Accuracy:" not in text
    assert written.reports == (TABLE, CHART)


def test_an_artifact_with_reports(artifact: Path, copy: Path) -> None:
    """Its reports are files of it: they may be replaced with it, and may not be missing."""
    found = read_manifest(artifact)
    write_report(found, {graph.file: (speed(10),) for graph in found.graphs}, copy).write(copy)
    again = read_manifest(copy)
    assert again.reports == (TABLE, CHART)
    assert again.graphs[0].speeds == (speed(10),)
    check_replaceable(copy)
    (copy / "notes.md").write_text("mine")
    with pytest.raises(ExportError, match=r"holds notes\.md, which is no part of an artifact"):
        check_replaceable(copy)
    (copy / CHART).unlink()
    assert read_manifest(copy).reports == (TABLE, CHART)  # it can be served without


def test_a_report_that_the_manifest_does_not_name_is_somebody_s(copy: Path) -> None:
    (copy / TABLE).write_text("years of work")
    with pytest.raises(ExportError, match=r"holds report\.md"):
        check_replaceable(copy)
